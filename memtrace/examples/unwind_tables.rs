//! Prints what the unwind tables of objects cost: rows, KiB, build time, and what they cannot say.
//!
//! ```text
//! unwind_tables PATH...
//! ```

use std::fs::File;

use anyhow::{Context, Result};
use memtrace::stacks::build_table_of_file;

fn main() -> Result<()> {
    println!("{:>9} {:>8} {:>9} {:>9}  object", "rows", "KiB", "functions", "ms");
    for path in std::env::args().skip(1) {
        let file = File::open(&path).with_context(|| format!("failed to open `{path}`"))?;
        match build_table_of_file(&file) {
            Ok(table) => {
                let stats = &table.stats;
                let unsupported: Vec<String> = stats
                    .unsupported_by_reason()
                    .map(|(reason, count)| format!("{count} {}", reason.label()))
                    .collect();
                let go = if stats.is_go { " [Go]" } else { "" };
                println!(
                    "{:>9} {:>8} {:>9} {:>9.2}  {path}{go} {}",
                    table.rows.len(),
                    table.rows.len() * 8 / 1024,
                    stats.functions,
                    stats.build.as_secs_f64() * 1e3,
                    unsupported.join(", "),
                );
            }
            Err(error) => println!("{path}: {error}"),
        }
    }
    Ok(())
}
