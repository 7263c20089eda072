//! `make demo-shell`: the server stays up until Enter or Ctrl-C.

use std::io::IsTerminal;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::USER;
use crate::harness::Dovecot;

/// Says how to connect, and waits.
pub fn wait(server: &Dovecot) {
    let signals = catch_signals();
    let address = server.imap_addr();
    let (host, port) = (address.ip(), address.port());
    println!(
        "\nA private Dovecot with XIDs is up until you press Enter here (or Ctrl-C).\n\n\
         \x20 user {USER}, or any other name; any password\n\
         \x20 IMAP         nc -C {host} {port}\n\
         \x20 IMAP, TLS    openssl s_client -quiet -crlf -connect {}\n\
         \x20 LMTP         nc -C {} {}\n\
         \x20 doveadm      doveadm -c {} mailbox status -u {USER} all INBOX\n\
         \x20 its files    {}\n\n\
         To begin with:\n\n\
         \x20 a LOGIN {USER} x\n\
         \x20 b SELECT INBOX\n\
         \x20 c SEARCH 1:* XID\n\
         \x20 d XHXID\n",
        server.imaps_addr(),
        server.lmtp_addr().ip(),
        server.lmtp_addr().port(),
        server.config().display(),
        server.mail_dir(USER).display(),
    );
    wait_for_enter_or_signal(&signals);
    println!("Stopping it, and removing its files.");
}

/// A descriptor that becomes readable on Ctrl-C and its like; from now on they do not end the
/// process, so that the server is stopped in good order.
fn catch_signals() -> OwnedFd {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set before anything reads it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
    }
    // SAFETY: the set was filled above.
    let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC) };
    assert!(fd >= 0, "signalfd: {}", std::io::Error::last_os_error());
    // SAFETY: a descriptor just made, which nobody else has.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Returns on a line from standard input, or a signal. Without a terminal an end of the input
/// says nothing, and only a signal counts.
fn wait_for_enter_or_signal(signals: &OwnedFd) {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut entries = [entry(signals.as_raw_fd()), entry(libc::STDIN_FILENO)];
    loop {
        // SAFETY: two valid entries, alive during the call.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) };
        if ready > 0 && entries[0].revents != 0 {
            return;
        }
        if ready > 0 && entries[1].revents != 0 {
            let mut line = String::new();
            let got = std::io::stdin().read_line(&mut line).unwrap_or(0);
            if got > 0 || std::io::stdin().is_terminal() {
                return;
            }
            // Poll skips negative descriptors.
            entries[1].fd = -1;
        }
    }
}
