//! A hint about a kernel that may lack important fixes.

/// The first versions with the fix of CVE-2026-43499, a local privilege escalation by futexes that also leaves containers.
/// It was fixed last among the bugs in SECURITY.md, so these versions have the other fixes too. Reports differ by some
/// releases; these are the latest that are named.
const FIXED: [(u32, u32, u32); 5] =
    [(6, 1, 177), (6, 6, 144), (6, 12, 95), (6, 18, 36), (7, 0, 13)];
/// What gVisor reports as its kernel. It is not Linux and has none of these bugs.
const GVISOR: (&str, &str) = ("4.4.0", "2016");

/// A sentence about a kernel with this release and version, as uname(2) tells them; `None` if it has the fixes or is not
/// Linux. Only a hint: distributions backport fixes without changing the numbers that they are compared by.
pub(super) fn kernel_hint(release: &str, version: &str) -> Option<String> {
    let numbers = numbers(release)?;
    let (major, minor, _) = numbers;
    let is_gvisor = release == GVISOR.0 && version.contains(GVISOR.1);
    if is_gvisor || (major, minor) > (7, 0) {
        return None;
    }
    let fix = FIXED.iter().find(|fix| (fix.0, fix.1) == (major, minor));
    match fix {
        Some(fix) if numbers >= *fix => None,
        Some((major, minor, patch)) => Some(format!(
            "Linux {release} may lack fixes that {major}.{minor}.{patch} has; see the kernel bugs in SECURITY.md"
        )),
        None => Some(format!(
            "Linux {major}.{minor} may lack fixes that newer series have; see the kernel bugs in SECURITY.md"
        )),
    }
}

/// The first three numbers of a release such as `6.1.0-13-amd64`.
fn numbers(release: &str) -> Option<(u32, u32, u32)> {
    let mut parts = release.split(|character: char| !character.is_ascii_digit());
    let mut number = || parts.next()?.parse().ok();
    Some((number()?, number()?, number().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_compared_with_the_fixes_of_its_series() {
        for release in ["6.18.44", "6.1.177-1-amd64", "7.0.13", "7.1.0-rc1", "8.2"] {
            assert_eq!(kernel_hint(release, "#1 SMP"), None, "{release}");
        }
        assert_eq!(
            kernel_hint("6.1.0-13-amd64", "#1 SMP").unwrap(),
            "Linux 6.1.0-13-amd64 may lack fixes that 6.1.177 has; see the kernel bugs in SECURITY.md"
        );
        assert_eq!(
            kernel_hint("5.10.245", "#1 SMP").unwrap(),
            "Linux 5.10 may lack fixes that newer series have; see the kernel bugs in SECURITY.md"
        );
        assert_eq!(kernel_hint("4.4.0", "#1 SMP Sun Jan 10 15:06:54 PST 2016"), None);
        assert_eq!(kernel_hint("unknown", ""), None);
    }
}
