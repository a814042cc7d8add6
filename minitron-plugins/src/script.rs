//! TorchScript files: a plugin's mathematics written in PyTorch.

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use minitron_core::error::{Error, Result};
use tch::{CModule, Device, IValue, Tensor};

/// A file's module, loaded when it is first called.
#[derive(Default)]
pub(crate) struct Script(OnceLock<Result<CModule, String>>);

impl Script {
    /// Calls a method that gives a tensor.
    ///
    /// # Errors
    /// `Recipe` when the file cannot be read as TorchScript, `Data` when the call fails or gives
    /// something else.
    pub fn call(&self, path: &Path, method: &str, arguments: &[IValue]) -> Result<Tensor> {
        let device = arguments.iter().find_map(|argument| match argument {
            IValue::Tensor(tensor) => Some(tensor.device()),
            _ => None,
        });
        let module = self
            .0
            .get_or_init(|| load(path, device.unwrap_or(Device::Cpu)));
        let module = module
            .as_ref()
            .map_err(|message| Error::Recipe(message.clone()))?;
        // Fusing kernels after some calls would make a run that was resumed differ from one that
        // was not. Kept for each thread.
        tch::jit::f_set_graph_executor_optimize(false)?;
        let message = match module.method_is(method, arguments) {
            Ok(IValue::Tensor(tensor)) => return Ok(tensor),
            Ok(_) => "expected a tensor for an answer".to_owned(),
            Err(error) => last_line(&error.to_string()),
        };
        Err(Error::Data(format!(
            "{}: `{method}`: {message}",
            path.display()
        )))
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Script")
    }
}

fn load(path: &Path, device: Device) -> Result<CModule, String> {
    if path.as_os_str().is_empty() {
        return Err("path: expected a file that torch.jit.script(module).save(path) wrote".into());
    }
    if !path.is_file() {
        return Err(format!("{}: no such file", path.display()));
    }
    CModule::load_on_device(path, device).map_err(|error| {
        let said = error.to_string();
        let what = format!("not a TorchScript file ({})", first_line(&said));
        format!("{}: {what}", path.display())
    })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Of a Python traceback, what went wrong.
fn last_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = lines.clone().find(|line| line.contains("Error:"));
    said.or(lines.clone().next()).unwrap_or_default().to_owned()
}
