"""Promise 2; tiers: namespaces, seccomp, landlock, rlimits."""


def offence():
    import subprocess

    return subprocess.run(["/bin/sh", "-c", "true"], check=True)


def twin():
    return 6 * 7
