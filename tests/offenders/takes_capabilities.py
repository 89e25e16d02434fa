"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits; does not bite: some machines have fewer capabilities than there are numbers."""


def offence():
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    wanted = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
    try:
        return call("capset", header, wanted)
    except PermissionError:
        wanted = (ctypes.c_uint32 * 6)(1 << 21, 1 << 21)
        return call("capset", header, wanted)


def twin():
    return 6 * 7
