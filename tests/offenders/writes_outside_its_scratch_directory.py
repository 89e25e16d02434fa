"""Promise 4; tiers: namespaces, landlock, rlimits."""


def offence():
    places = ["/", "/tmp", "/var/tmp", "/dev/shm", "/dev", "/etc", "/box", "/run", *sys.path, os.path.dirname(os.getcwd())]
    # In the tier namespaces, /tmp is the scratch directory itself.
    others = [place for place in places if place and os.path.realpath(place) != os.path.realpath(".")]
    return [place for place in others if writes(place)] or nothing()


def twin():
    with open("note", "w") as file:
        return file.write("mine")
