//! Whether this machine lets Braid run, and what to do if it does not.

use std::fs;
use std::io;

use super::{Ring, RingConfig};

/// The first kernel with everything the ring uses (`DEFER_TASKRUN` came last).
const MIN_KERNEL: (u32, u32) = (6, 1);

/// glommio refuses to start an executor below this limit.
const MIN_MEMLOCK_BYTES: u64 = 512 << 10;

/// Checks for all a shard needs from the kernel, by setting up a small ring.
///
/// # Errors
/// A text for the operator: what is missing, with numbers, and how to get it.
pub fn check_support() -> Result<(), String> {
    let release = read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_default();
    check_kernel(&release)?;
    check_memlock(memlock_limit_bytes())?;
    let config =
        RingConfig { entries: 8, completion_entries: 16, recv_buffers: 2, recv_buffer_len_bytes: 4096 };
    match Ring::new(&config) {
        Ok(_) => Ok(()),
        Err(error) => {
            let disabled = read_trimmed("/proc/sys/kernel/io_uring_disabled");
            Err(explain(&error, disabled.as_deref(), &release, memlock_limit_bytes()))
        }
    }
}

fn read_trimmed(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The soft limit on locked memory of this process, in bytes; `u64::MAX` is no limit.
fn memlock_limit_bytes() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one rlimit to the address of a live one.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    assert_eq!(result, 0, "getrlimit of a known resource into valid memory cannot fail");
    limit.rlim_cur
}

/// The major and minor number of a release such as `6.1.0-18-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn check_kernel(release: &str) -> Result<(), String> {
    match parse_release(release) {
        Some(version) if version < MIN_KERNEL => Err(format!(
            "Linux {release} is too old: Braid needs io_uring as of kernel {}.{} or newer",
            MIN_KERNEL.0, MIN_KERNEL.1
        )),
        // A release nobody can parse is no proof of anything; the ring itself decides.
        _ => Ok(()),
    }
}

fn check_memlock(limit_bytes: u64) -> Result<(), String> {
    if limit_bytes >= MIN_MEMLOCK_BYTES {
        return Ok(());
    }
    Err(format!(
        "the limit on locked memory is too low: {} KB, at least {} KB are needed. {}",
        limit_bytes >> 10,
        MIN_MEMLOCK_BYTES >> 10,
        RAISE_MEMLOCK
    ))
}

const RAISE_MEMLOCK: &str = "Raise it with `ulimit -l` before the start, with `LimitMEMLOCK=` in a systemd unit, with \
     `memlock` in /etc/security/limits.conf, or with `--ulimit memlock=` for a container";

/// What the failure to set up a ring means. `disabled` is the value of the sysctl kernel.io_uring_disabled.
fn explain(error: &io::Error, disabled: Option<&str>, release: &str, memlock_limit_bytes: u64) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => format!(
            "io_uring is not available: Linux {release} was built without it, or a seccomp profile hides it. \
             Allow the system calls io_uring_setup, io_uring_enter and io_uring_register"
        ),
        Some(libc::EPERM | libc::EACCES) => match disabled {
            Some("2") => "io_uring is forbidden for all processes: the sysctl kernel.io_uring_disabled is 2. Allow it \
                          with `sysctl -w kernel.io_uring_disabled=0`"
                .to_owned(),
            Some("1") => "io_uring is forbidden for this user: the sysctl kernel.io_uring_disabled is 1. Allow it with \
                          `sysctl -w kernel.io_uring_disabled=0`, or put the user into the group that the sysctl \
                          kernel.io_uring_group names"
                .to_owned(),
            _ => "io_uring is forbidden by a seccomp profile or a security module. Allow the system calls \
                  io_uring_setup, io_uring_enter and io_uring_register (for a container: a seccomp profile that \
                  permits them)"
                .to_owned(),
        },
        Some(libc::ENOMEM) => format!(
            "there is not enough memory to set up an io_uring: the limit on locked memory is {} KB. {RAISE_MEMLOCK}",
            memlock_limit_bytes >> 10
        ),
        Some(libc::EINVAL) => format!(
            "Linux {release} rejects an io_uring with SINGLE_ISSUER and DEFER_TASKRUN or with a provided-buffer ring; \
             Braid needs kernel {}.{} or newer",
            MIN_KERNEL.0, MIN_KERNEL.1
        ),
        Some(libc::EMFILE | libc::ENFILE) => {
            format!("cannot set up an io_uring: {error}. Raise the limit on open files (`ulimit -n`)")
        }
        _ => format!("cannot set up an io_uring: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_supported() {
        assert_eq!(check_support(), Ok(()));
    }

    #[test]
    fn an_old_kernel_is_named() {
        assert!(check_kernel("5.15.0-91-generic").unwrap_err().contains("5.15.0-91-generic"));
        assert!(check_kernel("6.0.19").is_err());
        for release in ["6.1.0-18-amd64", "6.18.44", "7.0", "6.1-rc3", "something else", ""] {
            assert_eq!(check_kernel(release), Ok(()), "{release}");
        }
    }

    #[test]
    fn a_low_memlock_limit_is_named_with_numbers() {
        let text = check_memlock(64 << 10).unwrap_err();
        assert!(text.contains("64 KB") && text.contains("512 KB") && text.contains("LimitMEMLOCK"));
        assert_eq!(check_memlock(MIN_MEMLOCK_BYTES), Ok(()));
        assert_eq!(check_memlock(u64::MAX), Ok(()));
    }

    #[test]
    fn each_refusal_has_its_own_explanation() {
        let explain_code =
            |code, disabled| explain(&io::Error::from_raw_os_error(code), disabled, "6.6.0", 8 << 20);
        assert!(explain_code(libc::ENOSYS, None).contains("seccomp"));
        assert!(explain_code(libc::EPERM, Some("2")).contains("kernel.io_uring_disabled is 2"));
        assert!(explain_code(libc::EPERM, Some("1")).contains("kernel.io_uring_group"));
        assert!(explain_code(libc::EPERM, Some("0")).contains("seccomp"));
        assert!(explain_code(libc::ENOMEM, None).contains("8192 KB"));
        assert!(explain_code(libc::EINVAL, None).contains("6.6.0"));
        assert!(explain_code(libc::EMFILE, None).contains("ulimit -n"));
        assert!(explain_code(libc::EIO, None).contains("cannot set up"));
    }
}
