//! Memory of this machine available to a run.

/// Bytes that can be allocated without swapping: `MemAvailable` of Linux, or less in a container with a
/// memory limit; `None` if the system does not report it.
pub fn available_memory() -> Option<u64> {
    let available = meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let of_group = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let limit = of_group("memory.max").zip(of_group("memory.stat"));
    let left = limit.and_then(|(max, stat)| left_in_group(&max, &stat));
    Some(left.map_or(available, |left| left.min(available)))
}

/// Bytes that a control group leaves to its processes. Cached files are not counted as used, since they can
/// be evicted.
fn left_in_group(max: &str, stat: &str) -> Option<u64> {
    let anon: u64 = stat.lines().find_map(|line| line.strip_prefix("anon "))?.trim().parse().ok()?;
    max.trim().parse::<u64>().ok().map(|max| max.saturating_sub(anon))
}

/// `MemAvailable` in bytes.
fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_available_memory_is_read_in_bytes() {
        assert_eq!(meminfo("MemTotal: 9 kB\nMemAvailable:   24000 kB\nX: 1\n"), Some(24_576_000));
        assert_eq!(meminfo("MemTotal: 9 kB\n"), None);
        assert_eq!(meminfo("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn a_container_may_have_less() {
        assert_eq!(left_in_group("1000\n", "anon 300\nfile 600\n"), Some(700));
        assert_eq!(left_in_group("max\n", "anon 300\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_says_how_much_it_has() {
        assert!(available_memory().unwrap() > 1 << 20);
    }
}
