"""Promise 7; tiers: namespaces, seccomp, landlock."""


def offence():
    import mmap

    return len(mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC))


def twin():
    import mmap

    return len(mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_READ))
