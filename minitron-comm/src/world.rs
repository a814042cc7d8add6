//! Who this process is among others, as its launcher says.

use std::str::FromStr;

use crate::error::{CommError, Result};

/// Who started the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Nobody: one process.
    Alone,
    /// torchrun, or whoever sets its variables: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
    /// MASTER_PORT.
    Torchrun,
    /// srun: SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID; MASTER_ADDR and MASTER_PORT are the
    /// user's.
    Slurm,
}

/// A process among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// This process, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// This process among those of its machine.
    pub local_rank: usize,
    /// How many of them are on this machine.
    pub local_size: usize,
    /// Where they meet.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Whether the launcher serves the store there: then no rank does.
    pub is_served: bool,
    /// Counts restarts: keys of an earlier attempt are another's.
    pub attempt: u64,
    /// Who said so.
    pub launcher: Launcher,
}

impl World {
    /// From the environment.
    ///
    /// # Errors
    /// `Rendezvous` for a variable that is missing beside others or is no number, and a rank that
    /// is not below the world's size.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// The same from any variables.
    ///
    /// # Errors
    /// As [`World::from_env`].
    pub fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let has = |name| variable(name).is_some();
        let is_torchrun = has("RANK") || has("WORLD_SIZE");
        let (launcher, names) = if is_torchrun {
            let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"];
            (Launcher::Torchrun, names)
        } else if has("SLURM_PROCID") && has("MASTER_ADDR") {
            let names = [
                "SLURM_PROCID",
                "SLURM_NTASKS",
                "SLURM_LOCALID",
                "SLURM_NTASKS_PER_NODE",
            ];
            (Launcher::Slurm, names)
        } else {
            return Ok(Self::alone());
        };
        let rank = needed(variable, names[0])?;
        let size = needed(variable, names[1])?;
        if rank >= size {
            return Err(CommError::Rendezvous(format!(
                "{}: expected a rank below {} = {size}, got {rank}",
                names[0], names[1]
            )));
        }
        let needs_address = size > 1 && !has("MASTER_ADDR");
        if needs_address {
            return Err(missing("MASTER_ADDR"));
        }
        Ok(World {
            rank,
            size,
            local_rank: optional(variable, names[2])?.unwrap_or(0),
            local_size: optional(variable, names[3])?.unwrap_or(1),
            address: variable("MASTER_ADDR").unwrap_or_default(),
            port: optional(variable, "MASTER_PORT")?.unwrap_or(29_500),
            is_served: variable("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
            attempt: optional(variable, "TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0),
            launcher,
        })
    }

    /// One process.
    pub fn alone() -> Self {
        World {
            rank: 0,
            size: 1,
            local_rank: 0,
            local_size: 1,
            address: String::new(),
            port: 0,
            is_served: false,
            attempt: 0,
            launcher: Launcher::Alone,
        }
    }

    /// Whether there are others.
    pub fn has_others(&self) -> bool {
        self.size > 1
    }

    /// Whether this process writes what the ranks found together.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// The interface of machines that meet at themselves, where `chosen` says nothing.
    pub(crate) fn interface(&self, chosen: Option<String>) -> Option<String> {
        let is_here = ["127.0.0.1", "localhost", "::1"].contains(&self.address.as_str());
        let loopback = if cfg!(target_os = "macos") {
            "lo0"
        } else {
            "lo"
        };
        chosen.or_else(|| is_here.then(|| loopback.to_owned()))
    }
}

fn optional<T: FromStr>(
    variable: &dyn Fn(&str) -> Option<String>,
    name: &str,
) -> Result<Option<T>> {
    let Some(text) = variable(name) else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .map_err(|_| CommError::Rendezvous(format!("{name}: expected a number, got `{text}`")))
}

fn needed(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<usize> {
    optional(variable, name)?.ok_or_else(|| missing(name))
}

fn missing(name: &str) -> CommError {
    CommError::Rendezvous(format!(
        "{name} is not set, other variables of its launcher are; start all ranks by torchrun, \
         srun or `minitron launch`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(variables: &[(&str, &str)]) -> Result<World> {
        World::from_variables(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_of_torchrun_and_srun_are_read() {
        assert_eq!(world(&[]).unwrap(), World::alone());
        // A job of Slurm's that is not about ranks.
        assert_eq!(world(&[("SLURM_PROCID", "0")]).unwrap(), World::alone());
        let torchrun = world(&[
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "n1"),
            ("MASTER_PORT", "1234"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
        ])
        .unwrap();
        assert_eq!((torchrun.rank, torchrun.size), (3, 4));
        assert_eq!((torchrun.local_rank, torchrun.local_size), (1, 2));
        assert_eq!((torchrun.port, torchrun.attempt), (1234, 2));
        assert!(torchrun.is_served && torchrun.launcher == Launcher::Torchrun);
        let slurm = world(&[
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_LOCALID", "0"),
            ("MASTER_ADDR", "n1"),
        ])
        .unwrap();
        assert_eq!((slurm.rank, slurm.size, slurm.port), (1, 2, 29_500));
        assert_eq!(slurm.launcher, Launcher::Slurm);
    }

    #[test]
    fn half_a_world_is_refused_by_the_name_of_what_is_missing() {
        let refused = |variables: &[(&str, &str)], name: &str| {
            let text = world(variables).unwrap_err().to_string();
            assert!(text.contains(name), "{text}");
        };
        refused(&[("RANK", "0")], "WORLD_SIZE is not set");
        refused(&[("WORLD_SIZE", "2")], "RANK is not set");
        let both = [("RANK", "0"), ("WORLD_SIZE", "2")];
        refused(&both, "MASTER_ADDR is not set");
        refused(
            &[("RANK", "2"), ("WORLD_SIZE", "2")],
            "below WORLD_SIZE = 2",
        );
        refused(
            &[("RANK", "x"), ("WORLD_SIZE", "2")],
            "RANK: expected a number",
        );
    }
}
