"""Promise 7; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    return call("epoll_create1", 0)


def twin():
    import select

    return select.poll().poll(0)
