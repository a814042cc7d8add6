//! How many operations a stretch of work takes, and how often the host waits in it.

use std::collections::BTreeMap;

use tch::TchError;

use crate::ffi::RawCounter;

/// What the host waits for: numbers read from tensors, sizes that follow from their values, copies
/// from a device. On the CPU the first two alone are to be seen.
const WAITS: [&str; 5] = [
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::_unique2",
    "minitron::copy_to_host",
    "minitron::read",
];

/// Counts, from [`OpCounter::begin`] to [`OpCounter::end`], what this thread and the backward
/// passes that it begins ask libtorch for.
///
/// Counters of one thread end in the reverse order of their beginning.
#[derive(Debug)]
pub struct OpCounter(RawCounter);

impl OpCounter {
    /// Begins.
    ///
    /// # Errors
    /// As libtorch's callbacks do.
    pub fn begin() -> Result<Self, TchError> {
        RawCounter::begin().map(OpCounter)
    }

    /// What was asked for since.
    ///
    /// # Errors
    /// As libtorch's callbacks do.
    pub fn end(self) -> Result<OpCounts, TchError> {
        Ok(OpCounts {
            by_name: self.0.end()?.into_iter().collect(),
        })
    }
}

/// Calls by the operation's name, those that operations make among each other included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// `aten::add` and the like.
    pub by_name: BTreeMap<String, u64>,
}

impl OpCounts {
    /// Calls of all operations.
    pub fn n_calls(&self) -> u64 {
        self.by_name.values().sum()
    }

    /// Calls of one.
    pub fn of(&self, name: &str) -> u64 {
        // Absent where it was never called.
        self.by_name.get(name).copied().unwrap_or_default()
    }

    /// How often the host waits for numbers.
    pub fn n_waits(&self) -> u64 {
        WAITS.iter().map(|name| self.of(name)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lists::read;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn operations_are_counted_between_begin_and_end_alone() {
        let x = Tensor::ones([4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let counter = OpCounter::begin().unwrap();
        let sum = (&x * &x).sum(Kind::Float);
        assert_eq!(sum.double_value(&[]), 4.0);
        let counts = counter.end().unwrap();
        assert_eq!(counts.of("aten::mul"), 1);
        assert_eq!(counts.n_waits(), 1);
        let counter = OpCounter::begin().unwrap();
        sum.backward();
        let counts = counter.end().unwrap();
        assert!(counts.of("aten::mul") >= 2, "{counts:?}");
        assert_eq!(counts.n_waits(), 0);
        assert_eq!(x.grad().double_value(&[0]), 2.0);
        let counter = OpCounter::begin().unwrap();
        assert_eq!(counter.end().unwrap(), OpCounts::default());
    }

    #[test]
    fn one_read_is_one_wait_however_many_numbers_it_brings() {
        let numbers = [1.5, 2.5, -3.0].map(|x| Tensor::from(x as f32));
        let counter = OpCounter::begin().unwrap();
        assert_eq!(read(&numbers).unwrap(), [1.5, 2.5, -3.0]);
        assert_eq!(counter.end().unwrap().n_waits(), 1);
        assert_eq!(read(&[]).unwrap(), [0.0; 0]);
    }

    #[test]
    fn a_counter_that_is_dropped_leaves_nothing_behind() {
        let outer = OpCounter::begin().unwrap();
        drop(OpCounter::begin().unwrap());
        let _ = Tensor::ones([4], (Kind::Float, Device::Cpu));
        assert_eq!(outer.end().unwrap().of("aten::ones"), 1);
    }
}
