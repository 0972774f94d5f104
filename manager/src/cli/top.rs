//! `fleet top`: the fleet live in a terminal.
//!
//! Owns the loop between keys, the hub and the screen. What is shown is decided in `view` and drawn in `draw`, both
//! pure. The terminal is given back on every way out, panics included.

mod draw;
mod view;

use std::{
    io::{self, IsTerminal as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::Args;
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::{
        event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers},
        terminal,
    },
};
use tokio::sync::{mpsc, watch};

use super::{Context, Failure};
use crate::api::shapes::{Node, Status, Telemetry};
use view::{Act, Key, View};

/// How to watch.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fleet top\n  fleet top -l site=berlin --sort cpu\n  fleet top --once\n\n\
    Keys: arrows or j k move, < > choose the sort column, r reverses, / filters, enter shows the node, ? help, q leaves."
)]
pub(super) struct TopArgs {
    /// Only nodes that match
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// The column to sort by
    #[arg(long, value_enum, default_value_t)]
    sort: view::Column,
    /// How often to ask the hub
    #[arg(long, default_value = "2s", value_parser = super::period::parse)]
    every: Duration,
    /// Print one frame and leave
    #[arg(long)]
    once: bool,
}

/// How far back the detail pane looks.
const LOOK_BACK_MS: i64 = 30 * 60_000;
/// Steps of the detail pane: one per half minute.
const STEP_MS: &str = "30000";
/// How long the key reader waits before it looks whether it should end.
const KEY_WAIT: Duration = Duration::from_millis(100);
/// Messages that may wait for the screen.
const WAITING: usize = 64;

/// What the hub was found to say.
#[derive(Debug)]
enum News {
    Fleet(Box<Status>, Vec<Node>),
    Detail(String, Telemetry),
    Trouble(String),
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(args: TopArgs, context: &Context) -> Result<(), Failure> {
    let mut view = View::new(context.client.base(), args.sort, context.out.color);
    if args.once {
        return once(&args, context, &mut view).await;
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::Usage("the live view needs a terminal; use --once for scripts".to_owned()));
    }
    // Fail plainly before the screen is taken.
    let (status, nodes) = fleet(&args, context).await?;
    view.fleet(status, nodes);
    let (wanted, watched) = watch::channel(view.detail_of().map(str::to_owned));
    let (news, mut arrivals) = mpsc::channel(WAITING);
    let fetcher = tokio::spawn(fetch(args, context.clone(), watched, news));
    let screen = ratatui::try_init().map_err(no_terminal);
    let result = match screen {
        Ok(mut screen) => live(&mut screen, &mut view, &wanted, &mut arrivals).await,
        Err(failure) => Err(failure),
    };
    ratatui::restore();
    fetcher.abort();
    result
}

#[expect(clippy::needless_pass_by_value, reason = "the shape map_err asks for")]
fn no_terminal(error: io::Error) -> Failure {
    Failure::Failed(format!("the terminal cannot be used: {error}"))
}

async fn live(
    screen: &mut ratatui::DefaultTerminal,
    view: &mut View,
    wanted: &watch::Sender<Option<String>>,
    arrivals: &mut mpsc::Receiver<News>,
) -> Result<(), Failure> {
    let (keys, mut typed) = mpsc::channel(WAITING);
    let stop = Arc::new(AtomicBool::new(false));
    let reader = tokio::task::spawn_blocking({
        let stop = stop.clone();
        move || read_keys(&keys, &stop)
    });
    let mut ended = Box::pin(ended());
    let result = loop {
        if let Err(error) = screen.draw(|frame| draw::frame(view, frame)) {
            break Err(no_terminal(error));
        }
        tokio::select! {
            key = typed.recv() => match key {
                Some(key) => {
                    if view.key(key) == Act::Leave {
                        break Ok(());
                    }
                }
                None => break Err(Failure::Failed("the keyboard is gone".to_owned())),
            },
            Some(news) = arrivals.recv() => match news {
                News::Fleet(status, nodes) => view.fleet(*status, nodes),
                News::Detail(node, telemetry) => view.detail(node, telemetry),
                News::Trouble(trouble) => view.trouble(trouble),
            },
            () = &mut ended => break Ok(()),
        }
        let detail = view.detail_of().map(str::to_owned);
        wanted.send_if_modified(|old| {
            let changed = *old != detail;
            *old = detail;
            changed
        });
    };
    stop.store(true, Relaxed);
    drop(typed);
    // It looks at the flag every KEY_WAIT.
    let _ = reader.await;
    result
}

/// Until somebody ends the process from outside.
async fn ended() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let (Ok(mut term), Ok(mut hup)) = (signal(SignalKind::terminate()), signal(SignalKind::hangup())) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term.recv() => {}
                _ = hup.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

fn read_keys(keys: &mpsc::Sender<Key>, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let key = match event::poll(KEY_WAIT) {
            Ok(false) => continue,
            Ok(true) => match event::read() {
                Ok(input) => key_of(&input),
                Err(_) => return,
            },
            Err(_) => return,
        };
        if key.is_some_and(|key| keys.blocking_send(key).is_err()) {
            return;
        }
    }
}

fn key_of(input: &Input) -> Option<Key> {
    let Input::Key(key) = input else {
        return matches!(input, Input::Resize(..)).then_some(Key::Redraw);
    };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Interrupt),
        KeyCode::Char(c) => Some(Key::Char(c)),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::PageUp => Some(Key::PageUp),
        KeyCode::PageDown => Some(Key::PageDown),
        KeyCode::Home => Some(Key::Home),
        KeyCode::End => Some(Key::End),
        KeyCode::Left => Some(Key::Char('<')),
        KeyCode::Right => Some(Key::Char('>')),
        KeyCode::Enter => Some(Key::Enter),
        KeyCode::Esc => Some(Key::Escape),
        KeyCode::Backspace => Some(Key::Backspace),
        _ => None,
    }
}

/// Asks the hub on schedule, and at once when another node is looked at.
async fn fetch(
    args: TopArgs,
    context: Context,
    mut wanted: watch::Receiver<Option<String>>,
    news: mpsc::Sender<News>,
) {
    loop {
        let detail = wanted.borrow_and_update().clone();
        let said = match fleet(&args, &context).await {
            Ok((status, nodes)) => {
                let now_ms = status.now_ms;
                if news.send(News::Fleet(Box::new(status), nodes)).await.is_err() {
                    return;
                }
                match detail {
                    Some(node) => match series(&node, now_ms, &context).await {
                        Ok(telemetry) => Some(News::Detail(node, telemetry)),
                        Err(failure) => Some(News::Trouble(failure.to_string())),
                    },
                    None => None,
                }
            }
            Err(failure) => Some(News::Trouble(failure.to_string())),
        };
        if let Some(said) = said
            && news.send(said).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(args.every) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

async fn fleet(args: &TopArgs, context: &Context) -> Result<(Status, Vec<Node>), Failure> {
    let query: Vec<_> = args.selector.as_deref().map(|selector| ("selector", selector)).into_iter().collect();
    let status = context.client.get(&["api", "v1", "status"], &[]).await?;
    let nodes = context.client.list(&["api", "v1", "nodes"], &query, None).await?;
    Ok((status, nodes))
}

async fn series(node: &str, now_ms: i64, context: &Context) -> Result<Telemetry, Failure> {
    let (from, to) = ((now_ms - LOOK_BACK_MS).to_string(), now_ms.to_string());
    let query = [("from_ms", from.as_str()), ("to_ms", to.as_str()), ("step_ms", STEP_MS), ("agg", "avg")];
    context.client.get(&["api", "v1", "nodes", node, "telemetry"], &query).await
}

async fn once(args: &TopArgs, context: &Context, view: &mut View) -> Result<(), Failure> {
    let (status, nodes) = fleet(args, context).await?;
    let now_ms = status.now_ms;
    view.fleet(status, nodes);
    if let Some(node) = view.detail_of().map(str::to_owned) {
        let telemetry = series(&node, now_ms, context).await?;
        view.detail(node, telemetry);
    }
    let (width, height) =
        if io::stdout().is_terminal() { terminal::size().unwrap_or((80, 24)) } else { (80, 24) };
    context.out.print(&picture(view, width, height))
}

/// One frame as text.
fn picture(view: &View, width: u16, height: u16) -> String {
    let mut screen = Terminal::new(TestBackend::new(width, height)).expect("memory is always drawable");
    screen.draw(|frame| draw::frame(view, frame)).expect("memory is always drawable");
    let buffer = screen.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let mut skip = 0;
        let mut line = String::new();
        for x in 0..width {
            let symbol = buffer[(x, y)].symbol();
            // A wide character covers the cell after it.
            if skip > 0 {
                skip -= 1;
            } else {
                skip = ratatui::text::Span::raw(symbol).width().saturating_sub(1);
                line.push_str(symbol);
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
