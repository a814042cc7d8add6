//! Several processes, over libtorch's c10d.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::{Device, Tensor};

use crate::communicator::{Communicator, ReduceOp, Work};
use crate::error::{CommError, Result};
use crate::ffi::RawGroup;
use crate::peers::{Peers, beat};
use crate::store::Store;
use crate::world::World;

/// Whether ranks of this build can have tensors on GPUs.
pub const HAS_NCCL: bool = cfg!(feature = "nccl");

/// How ranks work together.
#[derive(Debug, Clone, Copy)]
pub struct C10dOptions {
    /// How long a rank waits for the others.
    pub timeout: Duration,
    /// Whether shapes, types and kinds of collectives are compared before each: without it, ranks
    /// that differ may end in an abort of libtorch.
    pub is_checked: bool,
    /// Where this rank's tensors are, besides those on the CPU.
    pub device: Device,
}

impl Default for C10dOptions {
    fn default() -> Self {
        C10dOptions {
            timeout: Duration::from_secs(300),
            is_checked: false,
            device: Device::Cpu,
        }
    }
}

/// Ranks over Gloo; where they have GPUs, tensors there go over NCCL.
///
/// The address is that of the interface GLOO_SOCKET_IFNAME; without it, the loopback's where the
/// ranks meet at it, else the one that the machine's name stands for.
#[derive(Debug)]
pub struct C10d {
    group: RawGroup,
    /// That of tensors on GPUs.
    on_gpus: Option<RawGroup>,
    /// Another, where collectives are checked: a group counts barriers on rank 0 alone, and its
    /// counts are compared.
    barriers: Option<RawGroup>,
    peers: Arc<Peers>,
    store: Store,
    world: World,
    timeout: Duration,
}

impl C10d {
    /// Meets the other ranks.
    ///
    /// # Errors
    /// `Rendezvous` where they do not come in time, or Gloo does not do what it is for.
    pub fn join(world: &World, options: C10dOptions) -> Result<Self> {
        let C10dOptions {
            timeout,
            is_checked,
            device,
        } = options;
        let place = (world.rank, world.size);
        let (host, port) = (&world.address, world.port);
        let prefix = format!("minitron/{}", world.attempt);
        let root = if world.is_served {
            Store::connect(host, port, timeout)?
        } else {
            Store::meet(host, port, place, timeout)?
        };
        let store = root.with_prefix(&prefix)?;
        let interface = world.interface(std::env::var("GLOO_SOCKET_IFNAME").ok());
        let connect = |name: &str| {
            RawGroup::gloo(
                store.with_prefix(name)?.raw(),
                place,
                timeout,
                interface.as_deref(),
            )
            .map_err(not_connected)
        };
        let (mut group, mut barriers) = (connect("gloo")?, None);
        if is_checked {
            group = group.checked(&connect("checks")?)?;
            barriers = Some(connect("barriers")?);
        }
        let mut on_gpus = None;
        if device != Device::Cpu {
            let nccl = RawGroup::nccl(store.with_prefix("nccl")?.raw(), place, timeout)?;
            on_gpus = Some(match is_checked {
                true => nccl.checked(&connect("checks-nccl")?)?,
                false => nccl,
            });
        }
        let client =
            || Store::connect(host, root.port(), timeout).and_then(|it| it.with_prefix(&prefix));
        let clients = [client()?, client()?];
        let peers = Arc::new(Peers::new(clients, place, !world.is_served));
        let comm = C10d {
            group,
            on_gpus,
            barriers,
            peers,
            store,
            world: world.clone(),
            timeout,
        };
        comm.begin(device)?;
        Ok(comm)
    }

    /// All are here, and understand each other.
    fn begin(&self, device: Device) -> Result<()> {
        self.barrier()?;
        self.try_out(Device::Cpu)?;
        if device != Device::Cpu {
            self.try_out(device)?;
        }
        let World { rank, size, .. } = self.world;
        tracing::info!(rank, size, backend = self.backend(), "joined");
        Ok(())
    }

    /// Whether a sum is the sum: a libtorch whose classes are laid out otherwise than the headers
    /// say would show here.
    fn try_out(&self, device: Device) -> Result<()> {
        let n = self.world.size as i64;
        let ranks = Tensor::f_from_slice(&[self.world.rank as i64 + 1])?.f_to_device(device)?;
        self.all_reduce(&[&ranks], ReduceOp::Sum)?.wait()?;
        let (found, expected) = (ranks.f_int64_value(&[0])?, n * (n + 1) / 2);
        if found != expected {
            return Err(CommError::Backend(format!(
                "a sum over {n} ranks is {found}, expected {expected}: this libtorch is not the \
                 one that minitron was built with"
            )));
        }
        Ok(())
    }

    /// The group that a tensor goes over.
    fn group(&self, tensor: &Tensor) -> Result<&RawGroup> {
        match (tensor.device(), &self.on_gpus) {
            (Device::Cpu, _) => Ok(&self.group),
            (Device::Cuda(_), Some(group)) => Ok(group),
            (device, _) => Err(CommError::Unsupported(format!(
                "collective: the ranks have not met on {device:?}"
            ))),
        }
    }

    fn started(&self, work: Result<crate::ffi::RawWork>) -> Result<Work> {
        work.map(|work| Work::under_way(work, Arc::clone(&self.peers)))
            .map_err(|error| self.peers.named(error))
    }
}

impl Communicator for C10d {
    fn rank(&self) -> usize {
        self.world.rank
    }

    fn size(&self) -> usize {
        self.world.size
    }

    fn backend(&self) -> &'static str {
        match self.on_gpus {
            Some(_) => "gloo and nccl",
            None => "gloo",
        }
    }

    fn all_reduce(&self, tensors: &[&Tensor], op: ReduceOp) -> Result<Work> {
        let Some(first) = tensors.first() else {
            return Ok(Work::done());
        };
        check(tensors)?;
        self.started(self.group(first)?.all_reduce(tensors, op as i32))
    }

    fn reduce_scatter(&self, into: &Tensor, from: &Tensor, op: ReduceOp) -> Result<Work> {
        check(&[into, from])?;
        check_parts(into, from, self.world.size)?;
        self.started(self.group(from)?.reduce_scatter(into, from, op as i32))
    }

    fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<Work> {
        check(&[into, from])?;
        check_parts(from, into, self.world.size)?;
        self.started(self.group(from)?.all_gather(into, from))
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        check(&[tensor])?;
        self.started(self.group(tensor)?.broadcast(tensor, root))
    }

    fn barrier(&self) -> Result<()> {
        let group = self.barriers.as_ref().unwrap_or(&self.group);
        let done = group.barrier(self.timeout);
        done.map_err(|error| self.peers.named(error))
    }

    fn store(&self) -> Option<&Store> {
        Some(&self.store)
    }

    fn signs_of_life(&self, rank: usize) -> Result<i64> {
        self.store.count(&beat(rank), 0)
    }

    fn leave(&self) -> Result<()> {
        const LEFT: &str = "left";
        self.store.count(LEFT, 1)?;
        if self.world.is_served || !self.world.is_first() {
            return Ok(());
        }
        let (begin, mut n_lost) = (Instant::now(), 0);
        while self.store.count(LEFT, 0)? < (self.world.size - n_lost) as i64 {
            std::thread::sleep(Duration::from_millis(10));
            if begin.elapsed() > Duration::from_secs(2) {
                n_lost = self.peers.lost()?.len();
            }
        }
        Ok(())
    }
}

/// c10d takes a view that is not contiguous, and leaves it as it was.
fn check(tensors: &[&Tensor]) -> Result<()> {
    let Some(first) = tensors.first() else {
        return Ok(());
    };
    let (kind, device) = (first.kind(), first.device());
    for tensor in tensors {
        let wrong = if tensor.device() != device {
            "expected tensors on one device, got several on"
        } else if !tensor.is_contiguous() {
            "expected a contiguous tensor, got a view on"
        } else if tensor.kind() != kind {
            "expected tensors of one type, got several on"
        } else {
            continue;
        };
        return Err(CommError::Unsupported(format!(
            "collective: {wrong} {:?}: {:?} {:?}",
            tensor.device(),
            tensor.kind(),
            tensor.size()
        )));
    }
    Ok(())
}

fn check_parts(part: &Tensor, whole: &Tensor, n: usize) -> Result<()> {
    let (part, whole) = (part.numel(), whole.numel());
    if part.checked_mul(n) == Some(whole) {
        return Ok(());
    }
    Err(CommError::Unsupported(format!(
        "collective: expected {n} equal parts of {whole} values, got a part of {part}"
    )))
}

fn not_connected(error: CommError) -> CommError {
    CommError::Rendezvous(format!(
        "{error}; where machines have several networks, set GLOO_SOCKET_IFNAME to the interface \
         that they share"
    ))
}
