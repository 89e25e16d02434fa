"""Promise 7; tiers: namespaces, seccomp, landlock; does not bite: not every kernel has 32-bit system calls."""


def offence():
    if os.uname().machine != "x86_64":
        # On aarch64, a 64-bit program cannot make such a call. It can ask for the personality of 32-bit programs.
        return call("personality", 8)  # PER_LINUX32

    import mmap

    page = mmap.mmap(-1, 4096)
    page.write(bytes.fromhex("53b814000000cd805bc3"))  # push rbx; mov eax, 20 (getpid); int 0x80; pop rbx; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    call("mprotect", ctypes.c_void_p(address), 4096, 5)  # PROT_READ | PROT_EXEC
    process = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if process <= 0:  # gVisor returns EINVAL
        raise OSError(-process, "refused")
    return process


def twin():
    return 6 * 7
