//! What the system says of this process: its mappings and its resident size (Linux).

use std::fs;

/// A line of `/proc/self/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub bytes: u64,
    /// Such as `r-xp`.
    pub rights: String,
    /// A file, a name of the kernel's in brackets, or nothing.
    pub name: String,
}

impl Mapping {
    fn parse(line: &str) -> Self {
        // START-END RIGHTS OFFSET DEVICE INODE [NAME]
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-').expect("a range of addresses");
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).expect("an address"));
        Self { bytes: end - start, rights: fields[1].to_owned(), name: fields[5..].join(" ") }
    }

    pub fn is_writable_and_executable(&self) -> bool {
        self.rights.contains('w') && self.rights.contains('x')
    }

    /// Whether this is code that was made at run time.
    pub fn is_made_code(&self) -> bool {
        self.rights.contains('x') && self.name.is_empty()
    }
}

/// The mappings that a text in the form of `/proc/self/maps` lists.
pub fn parse_mappings(text: &str) -> Vec<Mapping> {
    text.lines().map(Mapping::parse).collect()
}

/// All mappings of this process.
pub fn mappings() -> Vec<Mapping> {
    parse_mappings(&fs::read_to_string("/proc/self/maps").expect("/proc/self/maps"))
}

/// Bytes of code that was made at run time. Neighboring mappings may be one, so their number says nothing.
pub fn made_code() -> u64 {
    mappings().iter().filter(|mapping| mapping.is_made_code()).map(|mapping| mapping.bytes).sum()
}

/// Bytes of memory in use; `None` where the system does not say.
pub fn resident() -> Option<u64> {
    // Counted page by page; the sums in `status` and `statm` lag behind.
    let text = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
