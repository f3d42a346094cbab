//! Overrides of spec values: `--set diffusion.hops=3`, `--set pattern.any.0.window.radius=64`.

use super::{Data, Source, Value, yaml};
use crate::error::{Result, Span};

/// Puts the value of override `index` of `source` at its path in `root`. Missing keys are created; a missing
/// list item, or a path through a plain value, is refused.
pub(super) fn apply(root: &mut Value, source: &Source, index: usize, path: &str, value: &str) -> Result<()> {
    let line = Source::override_line(index);
    let path_width = path.chars().count();
    let value = yaml::document(source, value, Span { line, column: path_width + 2, width: 1 })?;
    let mut target = root;
    let mut column = 1;
    for key in path.split('.') {
        let at = Span { line, column, width: key.chars().count() };
        column += key.chars().count() + 1;
        if key.is_empty() {
            return Err(source.error(at, "the path has an empty step", "a path, such as `diffusion.hops`"));
        }
        if let Data::Null = target.data {
            *target = Value { at, data: Data::Map(Vec::new()) };
        }
        let target_kind = target.describe();
        target = match &mut target.data {
            Data::Map(entries) => {
                let found = entries.iter().position(|(k, _, _)| k == key);
                let i = found.unwrap_or_else(|| {
                    entries.push((key.to_string(), at, Value { at, data: Data::Null }));
                    entries.len() - 1
                });
                &mut entries[i].2
            }
            Data::List(items) => {
                let count = items.len();
                match key.parse::<usize>().ok().and_then(|i| items.get_mut(i)) {
                    Some(item) => item,
                    None => {
                        let message = format!("no item `{key}` in a list of {count}");
                        let expected = match count {
                            0 => "another path, the list is empty".into(),
                            _ => format!("an index from 0 to {}", count - 1),
                        };
                        return Err(source.error(at, message, expected));
                    }
                }
            }
            Data::Scalar { .. } | Data::Null => {
                let message = format!("no `{key}` in {target_kind}");
                return Err(source.error(at, message, "a path through mappings and lists"));
            }
        };
    }
    *target = value;
    Ok(())
}
