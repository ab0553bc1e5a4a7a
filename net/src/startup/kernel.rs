//! The kernel: its version, and whether io_uring may be used.

use std::fs;
use std::io;

/// The oldest kernel with everything the rings use (`IORING_SETUP_DEFER_TASKRUN` came with it).
pub const MIN_KERNEL: (u32, u32) = (6, 1);

/// Major and minor version from a release such as `6.1.0-18-amd64`.
pub fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Checks a kernel release.
///
/// # Errors
/// When it is older than [`MIN_KERNEL`] or cannot be read.
pub fn check_release(release: &str) -> Result<(), String> {
    let (major, minor) = MIN_KERNEL;
    match parse_release(release) {
        Some(version) if version >= MIN_KERNEL => Ok(()),
        Some(_) => {
            Err(format!("Linux {release} is too old: Braid needs {major}.{minor} or newer, for io_uring"))
        }
        None => {
            Err(format!("the kernel calls itself '{release}': Braid needs Linux {major}.{minor} or newer"))
        }
    }
}

/// What to tell the operator when a ring could not be made: the error's number, and `kernel.io_uring_disabled` if the
/// kernel has it.
pub fn explain_ring_error(errno: i32, disabled: Option<&str>) -> String {
    match (errno, disabled) {
        (_, Some("2")) => {
            "io_uring is switched off on this machine: run 'sysctl kernel.io_uring_disabled=0'".to_owned()
        }
        (_, Some("1")) if errno == libc::EPERM => {
            "io_uring is reserved for a group on this machine: add the server's \
            user to the group in kernel.io_uring_group, or run 'sysctl kernel.io_uring_disabled=0'"
                .to_owned()
        }
        (libc::ENOSYS, _) => {
            "this kernel or its sandbox has no io_uring: in a container, allow the io_uring system calls \
            in the seccomp profile"
                .to_owned()
        }
        (libc::EPERM | libc::EACCES, _) => {
            "io_uring is forbidden here: in a container, allow the io_uring system calls \
            in the seccomp profile"
                .to_owned()
        }
        (libc::EINVAL, _) => {
            "this kernel's io_uring lacks SINGLE_ISSUER or DEFER_TASKRUN, which came with Linux 6.1"
                .to_owned()
        }
        (libc::ENOMEM, _) => {
            "there is no memory for an io_uring: raise the limit of locked memory with 'ulimit -l' or \
            LimitMEMLOCK="
                .to_owned()
        }
        (libc::EMFILE | libc::ENFILE, _) => "no file is left for an io_uring: raise 'ulimit -n'".to_owned(),
        _ => format!("io_uring cannot be used: {}", io::Error::from_raw_os_error(errno)),
    }
}

/// Checks this machine's kernel.
///
/// # Errors
/// One line that says what is wrong.
pub fn check() -> Result<(), String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|error| format!("the kernel's version cannot be read: {error}"))?;
    check_release(release.trim())?;
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let disabled = disabled.as_deref().map(str::trim);
    // The same flags as the ring of a shard, so that what works here works there.
    let ring: io::Result<io_uring::IoUring> =
        io_uring::IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8);
    ring.map(drop).map_err(|error| explain_ring_error(error.raw_os_error().unwrap_or(0), disabled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (release, version) in [
            ("6.1.0-18-amd64", Some((6, 1))),
            ("6.18.44-fc", Some((6, 18))),
            ("10.0", Some((10, 0))),
            ("7", None),
            ("linux", None),
            ("", None),
        ] {
            assert_eq!(parse_release(release), version, "{release}");
        }
        assert!(check_release("6.1.0").is_ok());
        assert!(check_release("7.0-rc1").is_ok());
        let error = check_release("5.15.0-100-generic").unwrap_err();
        assert!(error.contains("5.15.0-100-generic is too old") && error.contains("6.1 or newer"), "{error}");
        assert!(check_release("x").is_err());
    }

    #[test]
    fn every_reason_for_a_missing_ring_names_the_remedy() {
        for (errno, disabled, part) in [
            (libc::EPERM, Some("2"), "sysctl kernel.io_uring_disabled=0"),
            (libc::EPERM, Some("1"), "kernel.io_uring_group"),
            (libc::EPERM, Some("0"), "seccomp"),
            (libc::ENOSYS, None, "seccomp"),
            (libc::EINVAL, Some("0"), "6.1"),
            (libc::ENOMEM, None, "LimitMEMLOCK="),
            (libc::EMFILE, None, "ulimit -n"),
            (libc::EIO, None, "Input/output error"),
        ] {
            let text = explain_ring_error(errno, disabled);
            assert!(text.contains(part), "{text}");
            assert!(!text.contains('\n') && !text.contains("  "), "{text}");
        }
    }
}
