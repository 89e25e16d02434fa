"""Promise 2; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    arguments = (ctypes.c_uint64 * 8)()
    arguments[4] = 17  # exit_signal: SIGCHLD
    child = system_call(435, arguments, ctypes.c_size_t(64))  # clone3
    if child == 0:
        os._exit(0)
    return child


def twin():
    return 6 * 7
