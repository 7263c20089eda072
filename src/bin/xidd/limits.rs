//! What the system grants this process.

/// Takes as many descriptors as it may have: each mail process of the node is a connection.
pub fn raise() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is ours and of the right type.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return;
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above. Where it fails, fewer connections are served.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}
