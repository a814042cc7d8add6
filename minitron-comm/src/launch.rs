//! Ranks on one machine, started and watched from here.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{CommError, Result};
use crate::store::Store;

/// Between two looks at the ranks.
const LOOK: Duration = Duration::from_millis(50);
/// Ranks that lose one end by themselves in so long; then they are asked to, then made to.
const GRACE: Duration = Duration::from_secs(30);
const LAST_GRACE: Duration = Duration::from_secs(5);

/// A program to run as several ranks, by torchrun's variables.
#[derive(Debug)]
pub struct Launch {
    /// What is run.
    pub program: PathBuf,
    /// With what.
    pub args: Vec<OsString>,
    /// How many.
    pub n_ranks: usize,
    /// How often all are started again after one has failed.
    pub max_restarts: u64,
    /// Whether the others go on where one is lost that is not the first.
    pub tolerates_losses: bool,
    /// Where they run; here, where nothing is said.
    pub dir: Option<PathBuf>,
    /// What they find in their environment besides.
    pub variables: Vec<(OsString, OsString)>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The rank that failed first, and its code: 128 and the signal's number where one ended it.
    pub failed: Option<(usize, i32)>,
}

/// Where the launcher hears of signals and tells what happens.
pub trait Listener {
    /// Whether the ranks are to be told to end, since the last call.
    fn is_asked(&mut self) -> bool;

    /// In words.
    fn say(&mut self, message: &str);
}

impl Launch {
    /// Runs all ranks to their end. Their store is served here, so any of them may end first.
    ///
    /// # Errors
    /// `Rendezvous` where the program cannot be started.
    pub fn run(&self, listener: &mut dyn Listener) -> Result<Ended> {
        let store = Store::serve(0, GRACE)?;
        for attempt in 0..=self.max_restarts {
            let ranks = Ranks::start(self, store.port(), attempt)?;
            let (ended, is_asked) = ranks.watch(listener, self.tolerates_losses);
            let Some((rank, code)) = ended.failed else {
                return Ok(ended);
            };
            listener.say(&format!("rank {rank} ended with code {code}"));
            if is_asked || attempt == self.max_restarts {
                return Ok(ended);
            }
            let left = self.max_restarts.saturating_sub(attempt);
            listener.say(&format!(
                "all ranks are started again, {left} times at most"
            ));
        }
        Ok(Ended { failed: None })
    }

    fn command(&self, rank: usize, port: u16, attempt: u64) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env("RANK", rank.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("WORLD_SIZE", self.n_ranks.to_string())
            .env("LOCAL_WORLD_SIZE", self.n_ranks.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("TORCHELASTIC_USE_AGENT_STORE", "True")
            .env("TORCHELASTIC_RESTART_COUNT", attempt.to_string());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        // A signal from the terminal reaches this process alone, which passes it on once.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }
}

/// Processes that are stopped where nobody waits for them any more.
struct Ranks(Vec<(Child, Option<ExitStatus>)>);

impl Drop for Ranks {
    fn drop(&mut self) {
        self.tell(Signal::KILL);
        for (child, _) in &mut self.0 {
            let _ = child.wait();
        }
    }
}

impl Ranks {
    fn start(launch: &Launch, port: u16, attempt: u64) -> Result<Self> {
        let mut ranks = Ranks(Vec::with_capacity(launch.n_ranks));
        for rank in 0..launch.n_ranks {
            let child = launch.command(rank, port, attempt).spawn().map_err(|e| {
                let program = launch.program.display();
                CommError::Rendezvous(format!("`{program}` cannot be started as rank {rank}: {e}"))
            })?;
            ranks.0.push((child, None));
        }
        Ok(ranks)
    }

    /// Until all have ended; who is left when one has failed is told to. Returns also whether the
    /// ranks were asked to end.
    fn watch(mut self, listener: &mut dyn Listener, is_tolerant: bool) -> (Ended, bool) {
        let (mut failed, mut since, mut is_asked, mut n_told) = (None, None, false, 0);
        while self.is_any_left() {
            if listener.is_asked() {
                is_asked = true;
                self.tell(Signal::INT);
            }
            if failed.is_none()
                && let Some(found) = self.first_failure(is_tolerant)
            {
                (failed, since) = (Some(found), Some(Instant::now()));
            }
            let waited = since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
            if n_told == 0 && waited > GRACE {
                self.tell(Signal::TERM);
                n_told = 1;
            }
            if n_told == 1 && waited > GRACE.saturating_add(LAST_GRACE) {
                self.tell(Signal::KILL);
                n_told = 2;
            }
            std::thread::sleep(LOOK);
        }
        let failed = failed.or_else(|| self.first_failure(is_tolerant));
        (Ended { failed }, is_asked)
    }

    fn is_any_left(&mut self) -> bool {
        let mut is_left = false;
        for (child, status) in &mut self.0 {
            if status.is_none() {
                // One that cannot be waited for is gone.
                *status = child.try_wait().unwrap_or_default();
                is_left |= status.is_none();
            }
        }
        is_left
    }

    /// Where losses are tolerated, the first rank's alone counts.
    fn first_failure(&self, is_tolerant: bool) -> Option<(usize, i32)> {
        let n_counted = if is_tolerant { 1 } else { self.0.len() };
        let ended = self.0.iter().take(n_counted).enumerate();
        let mut codes =
            ended.filter_map(|(rank, (_, status))| Some((rank, code(status.as_ref()?))));
        codes.find(|(_, code)| *code != 0)
    }

    fn tell(&self, signal: Signal) {
        for (child, _) in self.0.iter().filter(|(_, status)| status.is_none()) {
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }
}

fn code(status: &ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => signal.saturating_add(128),
        (None, None) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Heard(Vec<String>);

    impl Listener for Heard {
        fn is_asked(&mut self) -> bool {
            false
        }
        fn say(&mut self, message: &str) {
            self.0.push(message.to_owned());
        }
    }

    fn launched(script: &str, max_restarts: u64) -> (Ended, Vec<String>) {
        let launch = Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            n_ranks: 2,
            max_restarts,
            tolerates_losses: false,
            dir: None,
            variables: Vec::new(),
        };
        let mut heard = Heard::default();
        (launch.run(&mut heard).unwrap(), heard.0)
    }

    #[test]
    fn ranks_know_their_place_and_the_first_failure_is_told() {
        let (ended, _) = launched("test $RANK = $LOCAL_RANK -a $WORLD_SIZE = 2", 0);
        assert_eq!(ended.failed, None);
        let (ended, heard) = launched("test $RANK = 0 || exit 7", 0);
        assert_eq!(ended.failed, Some((1, 7)));
        assert_eq!(heard, ["rank 1 ended with code 7"]);
        let (ended, _) = launched("test $RANK = 0 || kill -9 $$", 0);
        assert_eq!(ended.failed, Some((1, 137)));
    }

    #[test]
    fn all_are_started_again_as_often_as_was_asked() {
        let (ended, heard) = launched("test $TORCHELASTIC_RESTART_COUNT = 2 || exit 3", 2);
        assert_eq!((ended.failed, heard.len()), (None, 4));
        let (ended, _) = launched("exit 3", 1);
        assert!(ended.failed.is_some_and(|(_, code)| code == 3));
    }
}
