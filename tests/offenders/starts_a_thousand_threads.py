"""Promise 2; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import threading

    stop = threading.Event()
    started = []
    try:
        for _ in range(1000):
            thread = threading.Thread(target=stop.wait)
            thread.start()
            started.append(thread)
    finally:
        stop.set()
    return len(started)


def twin():
    return 6 * 7
