//! xidctl: what an administrator uses to look at, check and repair what the plug-in keeps.
//!
//! Every subcommand is one file with an `Args` (its options, from which the manual page and the
//! shell completions are made) and a `run`. `place` finds the mail a command is about, `host`
//! asks Dovecot, `output` prints for people or as JSON.

mod advance;
mod boxes;
#[cfg(feature = "cluster")]
mod cluster;
mod completions;
mod error;
mod export;
mod hold;
mod host;
mod index;
mod man;
mod output;
mod pending;
mod place;
mod status;
mod top;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Error;
use crate::output::Output;

/// Looks at, checks and repairs the XIDs and UIDs of a mail server's users.
///
/// XIDs name messages without any agreement between servers. The plug-in dovecot-xid(7) gives
/// them; xidctl shows what it keeps beside a user's indexes, compares it with the mail, and
/// writes it anew where it is wrong. Mail itself is never changed.
#[derive(Parser)]
#[command(name = "xidctl", version, max_term_width = 100)]
struct Cli {
    /// Dovecot's configuration file, where it is not the usual one.
    #[arg(short = 'c', long = "config", value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// Print JSON, for programs.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Status(status::Args),
    Pending(pending::Args),
    Advance(advance::Args),
    Hold(hold::HoldArgs),
    Release(hold::ReleaseArgs),
    Gate(hold::GateArgs),
    Top(top::Args),
    Verify(verify::Args),
    Export(export::Args),
    #[cfg(feature = "cluster")]
    Cluster(cluster::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Man(man::Args),
}

/// What every subcommand is given beside its own options.
pub struct Context {
    /// Dovecot, as far as it has to be asked.
    pub host: host::Host,
    /// Where answers go.
    pub output: Output,
}

/// How a subcommand ended when nothing went wrong.
pub enum Outcome {
    /// All is well: exit status 0.
    Fine,
    /// The command worked, and found something that is not as it should be: exit status 3.
    Found,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context {
        host: host::Host::new(cli.config),
        output: Output::new(cli.json),
    };
    match run(cli.command, &context) {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Found) => ExitCode::from(3),
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("xidctl: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, context: &Context) -> Result<Outcome, Error> {
    match command {
        Command::Status(args) => status::run(&args, context),
        Command::Pending(args) => pending::run(&args, context),
        Command::Advance(args) => advance::run(&args, context),
        Command::Hold(args) => hold::hold(&args, context),
        Command::Release(args) => hold::release(&args, context),
        Command::Gate(args) => hold::gate(&args, context),
        Command::Top(args) => top::run(&args, context),
        Command::Verify(args) => verify::run(&args, context),
        Command::Export(args) => export::run(&args, context),
        #[cfg(feature = "cluster")]
        Command::Cluster(args) => cluster::run(&args, context),
        Command::Completions(args) => completions::run(&args, context),
        Command::Man(args) => man::run(&args, context),
    }
}
