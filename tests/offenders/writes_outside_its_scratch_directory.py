"""Promise 4; tiers: namespaces, landlock, rlimits."""


def offence():
    places = ["/", "/tmp", "/var/tmp", "/dev/shm", "/dev", "/etc", "/box", "/run", *sys.path, os.path.dirname(os.getcwd())]
    return [place for place in places if place and writes(place)] or nothing()


def twin():
    with open("note", "w") as file:
        return file.write("mine")
