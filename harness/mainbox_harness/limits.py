"""Resource limits that a worker sets after its lockdown."""

import resource


def set_limits(limits: list[dict[str, int]]) -> None:
    """Sets each limit. Where the service was started with a lower limit, that one stays in force."""
    for limit in limits:
        _, most = resource.getrlimit(limit["resource"])
        soft, hard = limit["soft"], limit["hard"]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(limit["resource"], (soft, hard))


def lower_limits(differences: list[dict[str, int]]) -> None:
    """Lowers each limit by a difference."""
    for limit in differences:
        soft, hard = resource.getrlimit(limit["resource"])
        resource.setrlimit(limit["resource"], (soft - limit["soft"], hard - limit["hard"]))
