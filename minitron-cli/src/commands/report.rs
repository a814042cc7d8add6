use std::fs;
use std::io::Read;
use std::path::Path;

use minitron_core::error::{Error, IoContext, Result};
use minitron_core::output::write_atomic;
use minitron_engine::report::{Folder, gather};
use serde_json::json;

use crate::args::{Common, Report};
use crate::output;

pub fn run(common: &Common, args: &Report) -> Result<()> {
    if !args.force {
        refuse_others(&args.out)?;
    }
    let folders: Vec<Folder> = args
        .dirs
        .iter()
        .map(|dir| gather(dir))
        .collect::<Result<_>>()?;
    for note in folders.iter().flat_map(|folder| &folder.notes) {
        output::warn(&format!("left out of the page: {note}"));
    }
    let page = output::page(&folders);
    let n_bytes = page.len();
    let dir = args.out.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(dir).at_path(dir)?;
    write_atomic(&args.out, &page)?;
    let report = json!({ "out": args.out, "n_bytes": n_bytes, "folders": folders });
    output::show(common.json, &report, |_| {
        format!("{} ({n_bytes} bytes)", args.out.display())
    })
}

fn refuse_others(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let mut head = Vec::new();
    if path.is_file() {
        let file = fs::File::open(path).at_path(path)?;
        file.take(output::PAGE_MARK.len() as u64)
            .read_to_end(&mut head)
            .at_path(path)?;
    }
    if head == output::PAGE_MARK.as_bytes() {
        return Ok(());
    }
    let message = format!(
        "`{}` exists and is no page of `minitron report`",
        path.display()
    );
    Err(Error::Recipe(format!(
        "{message}; give another name or --force to replace it"
    )))
}
