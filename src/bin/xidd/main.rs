//! xidd: the daemon by which the nodes of a cluster agree on UIDs.
//!
//! All that it does is in [`imap_xid::daemon`]. Here it is started: the command line, the log, the
//! service manager, signals.

mod limits;
mod log;
mod manager;
mod owners;
mod reload;
mod service;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use imap_xid::daemon::Config;
use imap_xid::daemon::config::DEFAULT_FILE;

/// Something is wrong that another start will not put right (sysexits.h: EX_CONFIG). The unit
/// file keeps systemd from trying.
const BAD_CONFIG: u8 = 78;

/// Makes the UIDs of new messages stable, together with the other nodes' xidd.
///
/// Runs in the foreground, one on each node, beside Dovecot with the plug-in dovecot-xid(7). It
/// logs to standard error. SIGHUP reads the configuration anew, SIGTERM and SIGINT stop it. See
/// xidd(8).
#[derive(Parser)]
#[command(name = "xidd", version, max_term_width = 100)]
struct Cli {
    /// The configuration file.
    #[arg(short = 'c', long = "config", value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,

    /// Only say whether the configuration is right.
    #[arg(long)]
    check: bool,

    /// Log every step. RUST_LOG, where it is set, says more precisely what to log.
    #[arg(short = 'v', long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::start(cli.verbose);
    let config = match Config::load(&cli.config) {
        Ok(config) => config,
        Err(error) => {
            // With --check somebody reads it; else it goes where the log goes.
            match cli.check {
                true => eprintln!("xidd: {error}"),
                false => tracing::error!("{error}"),
            }
            return ExitCode::from(BAD_CONFIG);
        }
    };
    if cli.check {
        println!("{}: right", cli.config.display());
        return ExitCode::SUCCESS;
    }
    match service::run(cli.config, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            manager::tell_end(&error);
            match error.is_final() {
                true => ExitCode::from(BAD_CONFIG),
                false => ExitCode::FAILURE,
            }
        }
    }
}
