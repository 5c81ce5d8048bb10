//! Showing how far long work has come: bars on a terminal, plain lines in a log, nothing when quiet.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a log that is not a terminal gets a line about one task.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Where progress goes. Everything is written to stderr; stdout belongs to results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is shown.
    Silent,
    /// Bars with rate and time left.
    Terminal,
    /// A plain line now and then.
    Log,
}

impl Progress {
    /// Chooses by `quiet` and by what stderr is.
    pub fn new(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Silent,
            (false, true) => Self::Terminal,
            (false, false) => Self::Log,
        }
    }

    /// Starts a task of `total` steps, each one `unit` ("chunks").
    pub fn task(self, what: &str, total: u64, unit: &str) -> Task {
        let target = match self {
            Self::Terminal => ProgressDrawTarget::stderr(),
            Self::Silent | Self::Log => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = format!(
            "{{msg:24!}} [{{bar:30}}] {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{eta}} left {{prefix}}"
        );
        let style = ProgressStyle::with_template(&template).expect("the template is fixed");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what.to_string());
        let (what, unit) = (what.to_string(), unit.to_string());
        let now = Instant::now();
        Task { bar, what, unit, log: self == Self::Log, started: now, last: Mutex::new(now) }
    }

    /// Says one line.
    pub fn note(self, line: impl AsRef<str>) {
        if self != Self::Silent {
            say(format_args!("{}", line.as_ref()));
        }
    }
}

/// Writes a line to stderr. Where nobody reads it (a closed pipe), the work goes on.
fn say(line: std::fmt::Arguments<'_>) {
    let line = line.to_string();
    let _ = writeln!(std::io::stderr(), "{}", line.trim_end());
}

/// One piece of long work. The bar goes away when this is dropped.
pub struct Task {
    bar: ProgressBar,
    what: String,
    unit: String,
    log: bool,
    started: Instant,
    last: Mutex<Instant>,
}

impl Task {
    /// Counts `steps` more as done.
    pub fn advance(&self, steps: u64) {
        self.bar.inc(steps);
        if !self.log {
            return;
        }
        let Ok(mut last) = self.last.lock() else { return };
        if last.elapsed() >= LOG_EVERY {
            *last = Instant::now();
            self.log_line();
        }
    }

    /// Shows a short remark behind the bar, such as the loss.
    pub fn remark(&self, text: String) {
        self.bar.set_prefix(text);
    }

    fn log_line(&self) {
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = done as f64 / seconds.max(1e-9);
        let left = total.saturating_sub(done) as f64 / rate.max(1e-9);
        say(format_args!(
            "{}: {done}/{total} {}, {rate:.0}/s, {left:.0} s left {}",
            self.what,
            self.unit,
            self.bar.prefix()
        ));
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if self.log {
            let seconds = self.started.elapsed().as_secs_f64();
            say(format_args!(
                "{}: {} {} in {seconds:.1} s {}",
                self.what,
                self.bar.position(),
                self.unit,
                self.bar.prefix()
            ));
        }
    }
}
