//! `xidctl completions`: tab completion for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::error::Error;
use crate::{Cli, Context, Outcome};

/// Print tab completion for a shell.
///
/// For one session of bash: source <(xidctl completions bash)
#[derive(clap::Args)]
pub struct Args {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "xidctl", &mut script);
    std::io::Write::write_all(&mut context.output.writer(), &script)?;
    Ok(Outcome::Fine)
}
