//! What models compute in.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use minitron_core::error::{Error, Result};

/// A floating-point type that models compute in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ComputeType {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the exponent of f32.
    Bf16,
    /// 16 bits with a longer mantissa and a short exponent.
    F16,
}

impl ComputeType {
    /// What models compute in where nobody says: on a GPU half the bytes, and the kernels that are
    /// made for them; what is trained keeps its weights in f32 besides.
    pub fn usual_on(device: Device) -> Self {
        match device {
            Device::Cuda(_) => ComputeType::Bf16,
            _ => ComputeType::F32,
        }
    }

    /// As libtorch has it.
    pub fn kind(self) -> Kind {
        match self {
            ComputeType::F32 => Kind::Float,
            ComputeType::Bf16 => Kind::BFloat16,
            ComputeType::F16 => Kind::Half,
        }
    }
}

impl FromStr for ComputeType {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(ComputeType::F32),
            "bf16" => Ok(ComputeType::Bf16),
            "f16" => Ok(ComputeType::F16),
            other => Err(Error::unknown(
                "type to compute in",
                other,
                ["f32", "bf16", "f16"],
            )),
        }
    }
}

impl fmt::Display for ComputeType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            ComputeType::F32 => "f32",
            ComputeType::Bf16 => "bf16",
            ComputeType::F16 => "f16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_computes_in_half_the_bytes_and_a_cpu_does_not() {
        assert_eq!(ComputeType::usual_on(Device::Cuda(1)), ComputeType::Bf16);
        assert_eq!(ComputeType::usual_on(Device::Cpu), ComputeType::F32);
    }
}
