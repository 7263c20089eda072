//! `xidctl man`: the manual page xidctl(1), written from the descriptions of the options so that
//! it cannot say anything else than `--help` does.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::error::Error;
use crate::{Cli, Context, Outcome};

/// Print the manual page xidctl(1).
#[derive(clap::Args)]
pub struct Args {}

/// Prints the page.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(_args: &Args, context: &Context) -> Result<Outcome, Error> {
    let mut page = Vec::new();
    render(&mut page)?;
    context.output.writer().write_all(&page)?;
    Ok(Outcome::Fine)
}

/// Everything after the subcommands: sections that no option describes.
const TAIL: &[(&str, &[&str])] = &[
    (
        "EXIT STATUS",
        &[
            "0: all is well. 1: the command failed; standard error says why and what to do. \
             2: the command line was not understood. 3: verify found differences that are still \
             there.",
        ],
    ),
    (
        "FILES",
        &[
            "A user's folder (setting xid_dir, by default the root of the user's indexes) holds \
             xid.registry (SQLite; which XID has which UID and GUID), xid.journal (what is not in \
             the registry yet), xid.table (shared memory of the running server), \
             xid.incarnation (how often the registry was lost) and xid.waiters.",
            "xidctl run as root acts as the owner of that folder, so that no file in it ever \
             becomes root's.",
        ],
    ),
    ("SEE ALSO", &["dovecot-xid(7), doveadm(1)"]),
];

/// Writes the whole page.
fn render(page: &mut dyn Write) -> io::Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let man = Man::new(command.clone())
        .manual("imap-xid")
        .section("1")
        .date("");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    let mut heading = Roff::new();
    heading.control("SH", ["COMMANDS"]);
    heading.to_writer(page)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        render_subcommand(page, sub)?;
    }
    let mut tail = Roff::new();
    for (title, paragraphs) in TAIL {
        tail.control("SH", [*title]);
        for paragraph in *paragraphs {
            tail.control("PP", []);
            tail.text([roman(*paragraph)]);
        }
    }
    tail.to_writer(page)
}

/// Writes one subcommand: how it is called, what it does, its own options.
fn render_subcommand(page: &mut dyn Write, sub: &clap::Command) -> io::Result<()> {
    let mut roff = Roff::new();
    let usage = sub.clone().render_usage().to_string();
    roff.control("SS", [usage.trim_start_matches("Usage: ")]);
    let about = sub
        .get_long_about()
        .or(sub.get_about())
        .map(ToString::to_string);
    roff.text([roman(about.unwrap_or_default())]);
    for arg in sub
        .get_arguments()
        .filter(|arg| !arg.is_global_set() && is_own(arg))
    {
        roff.control("TP", []);
        roff.text([bold(spelling(arg))]);
        let help = arg
            .get_long_help()
            .or(arg.get_help())
            .map(ToString::to_string);
        roff.text([roman(help.unwrap_or_default())]);
    }
    roff.to_writer(page)?;
    let below = sub.get_subcommands();
    below
        .filter(|sub| sub.get_name() != "help")
        .try_for_each(|sub| render_subcommand(page, sub))
}

/// Whether an argument is the subcommand's own: not the --help that clap gives to each.
fn is_own(arg: &clap::Arg) -> bool {
    arg.get_id() != "help" && arg.get_id() != "version" && !arg.is_hide_set()
}

/// An argument as it is typed: `-u, --user USER`.
fn spelling(arg: &clap::Arg) -> String {
    let mut names = Vec::new();
    names.extend(arg.get_short().map(|short| format!("-{short}")));
    names.extend(arg.get_long().map(|long| format!("--{long}")));
    let value = match arg.get_value_names() {
        Some(values) if arg.get_action().takes_values() => values
            .iter()
            .map(|name| name.to_string())
            .collect::<Vec<_>>()
            .join(" "),
        _ => String::new(),
    };
    [names.join(", "), value]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
