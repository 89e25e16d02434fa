"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits; does not bite: on some machines root lacks capabilities."""


def offence():
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    wanted = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
    try:
        return call("capset", header, wanted)
    except PermissionError:
        wanted = (ctypes.c_uint32 * 6)(1 << 21, 1 << 21)  # CAP_SYS_ADMIN, effective and permitted
        return call("capset", header, wanted)


def twin():
    return 6 * 7
