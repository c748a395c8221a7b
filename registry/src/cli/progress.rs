//! How far a prefetch is: redrawn lines on a terminal, else a line for every change.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Stdout, Write as _};
use std::time::Duration;

use bytesize::ByteSize;
use coral_schema::admin::{
    PrefetchImage, PrefetchLayer, PrefetchState, PrefetchStatus, TransferState,
};
use coral_schema::oci::Platform;
use tokio::time::Instant;

/// Lines that are redrawn: fewer than the smallest usual terminal has, since what has scrolled away cannot be.
const LINES: usize = 20;
/// Between two lines on the progress of an image that has not changed its state.
const REMIND_EVERY: Duration = Duration::from_secs(10);

/// Standard output, and what it shows already.
pub(super) struct Screen {
    output: Stdout,
    redraw: bool,
    /// Lines that the next drawing replaces.
    drawn: usize,
    last: Option<PrefetchStatus>,
    reminded: Option<Instant>,
}

impl Screen {
    pub(super) fn on_stdout() -> Self {
        let output = io::stdout();
        Self {
            redraw: output.is_terminal(),
            output,
            drawn: 0,
            last: None,
            reminded: None,
        }
    }

    /// One line that stays.
    pub(super) fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.output, "{}", printable(line))
    }

    pub(super) fn show(&mut self, status: &PrefetchStatus, now: Instant) -> io::Result<()> {
        let text = if self.redraw {
            let lines = drawing(status);
            let text = redrawn(&lines, self.drawn);
            self.drawn = lines.len();
            text
        } else {
            let remind = self
                .reminded
                .is_none_or(|last| now.duration_since(last) >= REMIND_EVERY);
            if remind {
                self.reminded = Some(now);
            }
            let mut text = changes(self.last.as_ref(), status, remind).join("\n");
            if !text.is_empty() {
                text.push('\n');
            }
            self.last = Some(status.clone());
            text
        };
        self.output.write_all(text.as_bytes())?;
        self.output.flush()
    }
}

/// Replaces the last `drawn` lines of a terminal. Without line wrapping in the meantime: a wrapped line would count as
/// two.
fn redrawn(lines: &[String], drawn: usize) -> String {
    let mut text = String::from("\x1b[?7l");
    if drawn > 0 {
        let _ = write!(text, "\x1b[{drawn}A");
    }
    text.push_str("\r\x1b[J");
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("\x1b[?7h");
    text
}

/// Every image, and the layers that are on their way.
fn drawing(status: &PrefetchStatus) -> Vec<String> {
    let mut lines = Vec::new();
    for image in &status.images {
        lines.push(summary(image));
        let moving = image.layers.iter().filter(|layer| is_moving(layer));
        lines.extend(moving.map(layer_line));
    }
    if lines.len() > LINES {
        let hidden = lines.len() - LINES + 1;
        lines.truncate(LINES - 1);
        lines.push(format!("… and {hidden} more lines"));
    }
    lines
}

fn is_moving(layer: &PrefetchLayer) -> bool {
    matches!(
        layer.state,
        TransferState::Connecting | TransferState::Running | TransferState::Verifying
    )
}

fn layer_line(layer: &PrefetchLayer) -> String {
    const WIDTH: u64 = 24;
    let filled = match layer.size {
        0 => WIDTH,
        size => layer.done.min(size) * WIDTH / size,
    };
    let bar: String = (0..WIDTH)
        .map(|place| if place < filled { '=' } else { ' ' })
        .collect();
    let hex = layer.digest.hex();
    format!(
        "  {:.12} [{bar}] {}",
        hex,
        amount(layer.done, layer.size, layer.rate, layer.seconds_left)
    )
}

/// One line about an image as a whole.
fn summary(image: &PrefetchImage) -> String {
    let sum = |of: fn(&PrefetchLayer) -> u64| image.layers.iter().map(of).sum::<u64>();
    let (done, size, rate) = (
        sum(|layer| layer.done),
        sum(|layer| layer.size),
        sum(|layer| layer.rate),
    );
    let name = &image.reference;
    printable(&match image.state {
        PrefetchState::Queued => format!("{name}: waits"),
        PrefetchState::Running if image.layers.is_empty() => format!("{name}: reads its manifest"),
        PrefetchState::Running => {
            let left = size.saturating_sub(done).checked_div(rate);
            format!("{name}: {}", amount(done, size, rate, left))
        }
        PrefetchState::Done if image.missing_platforms.is_empty() => {
            format!("{name}: held, {}", bytes(size))
        }
        PrefetchState::Done => {
            let missing = listed(&image.missing_platforms);
            format!("{name}: held, {}; no image for {missing}", bytes(size))
        }
        PrefetchState::Failed => {
            let reason = image.message.as_deref().unwrap_or("no reason given");
            format!("{name}: failed: {reason}")
        }
    })
}

fn listed(platforms: &[Platform]) -> String {
    let names: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    names.join(", ")
}

fn amount(done: u64, size: u64, rate: u64, seconds_left: Option<u64>) -> String {
    let mut text = format!("{} of {}", bytes(done), bytes(size));
    if rate > 0 && done < size {
        let _ = write!(text, ", {}/s", bytes(rate));
        if let Some(seconds) = seconds_left {
            let _ = write!(text, ", {} left", time(seconds));
        }
    }
    text
}

/// A line for every image that changed its state or learned its layers; with `remind` also for those that run.
fn changes(before: Option<&PrefetchStatus>, now: &PrefetchStatus, remind: bool) -> Vec<String> {
    let known = |image: &PrefetchImage| (image.state, image.layers.len());
    now.images
        .iter()
        .enumerate()
        .filter(|(place, image)| {
            let old = before.and_then(|before| before.images.get(*place));
            let running = image.state == PrefetchState::Running;
            old.map(known) != Some(known(image)) || (remind && running)
        })
        .map(|(_, image)| summary(image))
        .collect()
}

fn bytes(count: u64) -> String {
    ByteSize::b(count).display().iec().to_string()
}

fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Names and reasons come from elsewhere: they must not steer the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

#[cfg(test)]
mod tests {
    use coral_schema::oci::Digest;

    use super::*;

    fn layer(content: &[u8], done: u64, state: TransferState) -> PrefetchLayer {
        PrefetchLayer {
            digest: Digest::sha256(content),
            size: 10 << 20,
            done,
            rate: 1 << 20,
            seconds_left: Some(5),
            state,
        }
    }

    fn job(state: PrefetchState, layers: Vec<PrefetchLayer>) -> PrefetchStatus {
        PrefetchStatus {
            id: "1".to_owned(),
            state,
            images: vec![PrefetchImage {
                state,
                layers,
                ..PrefetchImage::queued("nginx")
            }],
        }
    }

    #[test]
    fn a_drawing_has_amount_rate_and_time_left_per_layer() {
        let layers = vec![
            layer(b"1", 10 << 20, TransferState::Published),
            layer(b"2", 5 << 20, TransferState::Running),
            layer(b"3", 0, TransferState::Queued),
        ];
        let lines = drawing(&job(PrefetchState::Running, layers));
        assert_eq!(
            lines,
            [
                "nginx: 15.0 MiB of 30.0 MiB, 3.0 MiB/s, 5 s left",
                "  d4735e3a265e [============            ] 5.0 MiB of 10.0 MiB, 1.0 MiB/s, 5 s left",
            ]
        );
    }

    #[test]
    fn a_drawing_fits_a_terminal() {
        let layers = (0..100_u8).map(|n| layer(&[n], 1, TransferState::Running));
        let lines = drawing(&job(PrefetchState::Running, layers.collect()));
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[LINES - 1], "… and 82 more lines");
    }

    #[test]
    fn redrawing_goes_back_over_what_was_drawn() {
        assert_eq!(redrawn(&["a".to_owned()], 0), "\x1b[?7l\r\x1b[Ja\n\x1b[?7h");
        assert_eq!(redrawn(&[], 3), "\x1b[?7l\x1b[3A\r\x1b[J\x1b[?7h");
    }

    #[test]
    fn without_a_terminal_only_changes_and_reminders_are_said() {
        let running = job(
            PrefetchState::Running,
            vec![layer(b"1", 1, TransferState::Running)],
        );
        assert_eq!(changes(None, &running, false).len(), 1);
        assert!(changes(Some(&running), &running, false).is_empty());
        assert_eq!(changes(Some(&running), &running, true).len(), 1);
        let done = job(PrefetchState::Done, Vec::new());
        assert_eq!(changes(Some(&running), &done, false), ["nginx: held, 0 B"]);
        assert!(changes(Some(&done), &done, true).is_empty());
    }

    #[test]
    fn what_is_held_for_some_platforms_says_so() {
        let mut partial = job(PrefetchState::Done, Vec::new());
        partial.images[0].missing_platforms = ["linux/arm64", "linux/s390x"]
            .map(|name| name.parse().unwrap())
            .to_vec();
        assert_eq!(
            drawing(&partial),
            ["nginx: held, 0 B; no image for linux/arm64, linux/s390x"]
        );
    }

    #[test]
    fn failures_say_why_and_steer_no_terminal() {
        let mut failed = job(PrefetchState::Failed, Vec::new());
        failed.images[0].message = Some("no such\x1b[2Jtag".to_owned());
        assert_eq!(drawing(&failed), ["nginx: failed: no such [2Jtag"]);
    }

    #[test]
    fn times_are_short() {
        assert_eq!([5, 65, 3725].map(time), ["5 s", "1 min 5 s", "1 h 2 min"]);
    }
}
