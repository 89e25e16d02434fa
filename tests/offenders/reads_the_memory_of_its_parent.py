"""Promise 3; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    byte = ctypes.create_string_buffer(1)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(byte), 1)
    there = (ctypes.c_size_t * 2)(id(libc), 1)
    try:
        return call("process_vm_readv", os.getppid(), here, 1, there, 1, 0)
    except OSError as error:
        if error.errno == errno.EFAULT:  # allowed, but the address is not mapped
            return error
        raise


def twin():
    return 6 * 7
