"""Promise 4; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import json

    link = os.path.join(os.environ.get("TMPDIR", os.path.dirname(json.__file__)), f"link-{os.getpid()}")
    os.link(json.__file__, link)
    os.unlink(link)
    return link


def twin():
    return 6 * 7
