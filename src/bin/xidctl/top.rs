//! `xidctl top`: mailboxes with pending UIDs and who waits for them, as it happens.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use imap_xid::table::{Counts, Info};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table, TableState};
use serde::Serialize;

use crate::boxes::{Boxes, ago, name_of, parse_time};
use crate::error::Error;
use crate::place::PlaceArgs;
use crate::{Context, Outcome};

/// Watch the mailboxes with pending UIDs, those who wait for them, and the oldest wait.
///
/// The longest wait comes first. Keys: q ends, the arrows scroll, a shows all mailboxes or those
/// with something pending only. Without a terminal, or with --json, one look is printed.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: PlaceArgs,

    /// The pause between two looks.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_time)]
    every: Duration,

    /// Also mailboxes where nothing is pending.
    #[arg(short, long)]
    all: bool,
}

/// One look at the table.
#[derive(Serialize)]
struct Look {
    mailboxes: Vec<Watched>,
    pending: u64,
    waiting: u64,
    waits: u64,
    timeouts: u64,
    gate_waits: u64,
    advances: u64,
}

#[derive(Serialize)]
struct Watched {
    name: String,
    watermark: u32,
    last_uid: u32,
    pending: u32,
    oldest_pending_ms: Option<u64>,
    waiters: u32,
    oldest_wait_ms: Option<u64>,
    gate_ms: Option<u64>,
    hold_ms: Option<u64>,
}

/// Shows the view until the user has seen enough.
///
/// # Errors
/// When the user's table cannot be found or read, or the terminal does not do.
pub fn run(args: &Args, context: &Context) -> Result<Outcome, Error> {
    let boxes = Boxes::open(&args.place, context)?;
    if context.output.json() || !io::stdout().is_terminal() {
        let look = look(&boxes, args.all)?;
        drop(boxes);
        context.output.print(&look, show)?;
        return Ok(Outcome::Fine);
    }
    let mut terminal = ratatui::try_init()?;
    let result = watch(&mut terminal, boxes, args, context);
    ratatui::try_restore()?;
    result?;
    Ok(Outcome::Fine)
}

/// Whether a look must show a mailbox that nobody asked for by name.
fn is_busy(info: &Info) -> bool {
    info.pending > 0 || info.waiters > 0 || info.gate.is_some() || info.hold.is_some()
}

fn look(boxes: &Boxes, all: bool) -> Result<Look, Error> {
    let mut mailboxes: Vec<Watched> = boxes
        .list()?
        .iter()
        .filter(|(_, info)| all || is_busy(info))
        .map(|(_, info)| watched(info))
        .collect();
    mailboxes.sort_by_key(|one| {
        let oldest = one.oldest_wait_ms.max(one.oldest_pending_ms);
        std::cmp::Reverse((one.oldest_wait_ms.is_some(), oldest))
    });
    let Counts {
        pending,
        waits,
        timeouts,
        gate_waits,
        advances,
        ..
    } = boxes.table.counts();
    let waiting = mailboxes.iter().map(|one| u64::from(one.waiters)).sum();
    Ok(Look {
        mailboxes,
        pending,
        waiting,
        waits,
        timeouts,
        gate_waits,
        advances,
    })
}

fn watched(info: &Info) -> Watched {
    Watched {
        name: name_of(info),
        watermark: info.watermark.unwrap_or(0),
        last_uid: info.last_uid,
        pending: info.pending,
        oldest_pending_ms: info.oldest_pending.map(|(_, ms)| ms),
        waiters: info.waiters,
        oldest_wait_ms: info.oldest_wait_ms,
        gate_ms: info.gate.map(|(_, ms)| ms),
        hold_ms: info.hold.map(|(_, ms)| ms),
    }
}

/// What the view shows beside the look.
struct View {
    look: Look,
    all: bool,
    rows: TableState,
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    mut boxes: Boxes,
    args: &Args,
    context: &Context,
) -> Result<(), Error> {
    let mut view = View {
        look: look(&boxes, args.all)?,
        all: args.all,
        rows: TableState::default(),
    };
    let mut next = Instant::now() + args.every;
    loop {
        terminal.draw(|frame| draw(frame, &mut view))?;
        if event::poll(next.saturating_duration_since(Instant::now()))? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press && ends(&mut view, key) => {
                    return Ok(());
                }
                _ => continue,
            }
        }
        if !boxes.table.is_current() {
            // Give the old identity back first: the new one is taken from it.
            drop(boxes);
            boxes = Boxes::open(&args.place, context)?;
        }
        view.look = look(&boxes, view.all)?;
        next = Instant::now() + args.every;
    }
}

/// What a key does; whether it ends the view.
fn ends(view: &mut View, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Char('a') => view.all = !view.all,
        KeyCode::Down | KeyCode::Char('j') => view.rows.select_next(),
        KeyCode::Up | KeyCode::Char('k') => view.rows.select_previous(),
        _ => {}
    }
    false
}

/// The columns: heading and width.
const COLUMNS: [(&str, u16); 7] = [
    ("PENDING", 8),
    ("OLDEST", 9),
    ("WAITING", 8),
    ("LONGEST", 9),
    ("WATERMARK", 11),
    ("LAST UID", 11),
    ("", 12),
];

fn draw(frame: &mut Frame, view: &mut View) {
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Line::from(summary(&view.look)), head);
    let widths = std::iter::once(Constraint::Fill(1))
        .chain(COLUMNS.map(|(_, width)| Constraint::Length(width)));
    let headings = std::iter::once("MAILBOX").chain(COLUMNS.map(|(heading, _)| heading));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let rows = view.look.mailboxes.iter().map(|one| {
        let row = Row::new(columns(one).map(Cell::from));
        match one.waiters {
            0 => row,
            _ => row.style(bold),
        }
    });
    let table = Table::new(rows, widths)
        .header(
            Row::new(headings.map(Cell::from)).style(Style::new().add_modifier(Modifier::REVERSED)),
        )
        .row_highlight_style(Style::new().add_modifier(Modifier::UNDERLINED));
    frame.render_stateful_widget(table, body, &mut view.rows);
    frame.render_widget(Line::from("q end   a all mailboxes   up/down scroll"), foot);
}

fn summary(look: &Look) -> String {
    format!(
        "{} pending, {} waiting; since the boot: {} waits, {} timed out, {} at a gate, {} advances",
        look.pending, look.waiting, look.waits, look.timeouts, look.gate_waits, look.advances
    )
}

/// A mailbox's row: its name, then [`COLUMNS`].
fn columns(one: &Watched) -> [String; 8] {
    let time = |ms: Option<u64>| ms.map_or(String::new(), ago);
    let state = match (one.gate_ms, one.hold_ms) {
        (Some(_), _) => "gate closed",
        (None, Some(_)) => "on hold",
        (None, None) => "",
    };
    [
        one.name.clone(),
        one.pending.to_string(),
        time(one.oldest_pending_ms),
        one.waiters.to_string(),
        time(one.oldest_wait_ms),
        one.watermark.to_string(),
        one.last_uid.to_string(),
        state.to_owned(),
    ]
}

fn show(out: &mut dyn Write, look: &Look) -> io::Result<()> {
    writeln!(out, "{}", summary(look))?;
    for one in &look.mailboxes {
        writeln!(out, "{}", columns(one).join("\t").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn view() -> View {
        let waiting = Watched {
            name: "INBOX".to_owned(),
            watermark: 8,
            last_uid: 11,
            pending: 3,
            oldest_pending_ms: Some(2_500),
            waiters: 2,
            oldest_wait_ms: Some(1_250),
            gate_ms: None,
            hold_ms: Some(5_000),
        };
        let look = Look {
            mailboxes: vec![waiting],
            pending: 3,
            waiting: 2,
            waits: 7,
            timeouts: 1,
            gate_waits: 0,
            advances: 5,
        };
        View {
            look,
            all: false,
            rows: TableState::default(),
        }
    }

    #[test]
    fn the_view_shows_pending_waiting_and_how_long() {
        let mut view = view();
        let mut terminal = Terminal::new(TestBackend::new(100, 8)).unwrap();
        terminal.draw(|frame| draw(frame, &mut view)).unwrap();
        let text = terminal.backend().to_string();
        for part in [
            "3 pending, 2 waiting",
            "INBOX",
            "2.5 s",
            "1.2 s",
            "on hold",
            "q end",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }

    #[test]
    fn keys_end_the_view_or_change_it() {
        let mut view = view();
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert!(!ends(&mut view, key(KeyCode::Char('a'))));
        assert!(view.all);
        assert!(!ends(&mut view, key(KeyCode::Down)));
        assert_eq!(view.rows.selected(), Some(0));
        assert!(ends(&mut view, key(KeyCode::Char('q'))));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(ends(&mut view, interrupt));
    }
}
