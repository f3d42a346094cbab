//! Small files that outlive the process: what was measured of the machine, and the plans that won.
//!
//! In: a name and something that serializes. Out: one JSON file a name in the cache folder (`HOPWEAVE_CACHE_DIR`, else
//! `hopweave` in the user's cache folder), written whole or not at all, so that writers of different names lose nothing
//! to each other and readers never see half a file. What cannot be read is an error that names the file; whoever reads
//! a cache goes on without it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// The variable that names the folder.
pub const FOLDER_VARIABLE: &str = "HOPWEAVE_CACHE_DIR";
/// No entry is longer; what is, was not written by us and is not read into memory.
const MOST_BYTES: u64 = 1 << 20;

/// A folder of entries. It need not exist before something is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The folder of this user: [`FOLDER_VARIABLE`] where it is set and not empty, else `hopweave` in the user's cache
    /// folder; `None` where the system knows no such folder.
    pub fn of_user() -> Option<Self> {
        if let Some(folder) = std::env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty()) {
            return Some(Self::at(PathBuf::from(folder)));
        }
        let folders = etcetera::choose_base_strategy().ok()?;
        Some(Self::at(folders.cache_dir().join("hopweave")))
    }

    /// [`Self::of_user`] for those who cannot do without.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no such folder.
    pub fn required() -> Result<Self> {
        Self::of_user().ok_or_else(|| {
            Error::unsupported(
                "keeping what is measured",
                format!("this user has no cache folder; set {FOLDER_VARIABLE} to a folder"),
            )
        })
    }

    /// A given folder.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The file of an entry.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Reads an entry; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Input`] that names the file, where it is there but cannot be read or is not whole.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path(name);
        let wrong = |message: String| Error::Input { path: path.clone(), message };
        let data = match fs::metadata(&path) {
            Ok(data) => data,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return Err(not_a_folder(&self.folder));
            }
            Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
        };
        // A pipe would never end, and a folder never begin.
        if !data.is_file() {
            return Err(wrong(format!("is {}; expected a cache entry", kind(&data))));
        }
        if data.len() > MOST_BYTES {
            return Err(wrong(format!("holds {} bytes; a cache entry has at most {MOST_BYTES}", data.len())));
        }
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text));
        read.map_err(|error| wrong(format!("cannot be read: {error}")))?;
        serde_json::from_str(&text).map(Some).map_err(|error| wrong(format!("is no whole cache entry: {error}")))
    }

    /// Whether entries can be written; makes the folder where it is missing.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn check_writable(&self) -> Result<()> {
        self.temporary().map(drop)
    }

    /// A file in the folder that is gone when it is dropped.
    fn temporary(&self) -> Result<NamedTempFile> {
        if self.folder.exists() && !self.folder.is_dir() {
            return Err(not_a_folder(&self.folder));
        }
        let made = fs::create_dir_all(&self.folder).and_then(|()| NamedTempFile::new_in(&self.folder));
        made.map_err(|error| refused(&self.folder, &error))
    }

    /// Writes an entry in place of any other of its name, whole or not at all. The folder is made where it is missing.
    ///
    /// # Errors
    /// [`Error::Input`] that names the folder or the file, where the system refuses.
    pub fn write(&self, name: &str, entry: &impl Serialize) -> Result<PathBuf> {
        let path = self.path(name);
        let text = serde_json::to_string_pretty(entry).map_err(|error| refused(&path, &error))?;
        let mut file = self.temporary()?;
        writeln!(file, "{text}").map_err(|error| refused(&path, &error))?;
        file.persist(&path).map_err(|error| refused(&path, &error.error))?;
        Ok(path)
    }
}

fn refused(path: &Path, error: &dyn std::fmt::Display) -> Error {
    let message = format!("cannot be written: {error}; {FOLDER_VARIABLE} may name another folder for the cache");
    Error::Input { path: path.into(), message }
}

fn not_a_folder(path: &Path) -> Error {
    Error::Input { path: path.into(), message: "is no folder; expected the folder of the cache".into() }
}

fn kind(data: &fs::Metadata) -> &'static str {
    if data.is_dir() { "a folder" } else { "no regular file" }
}

/// A name for whatever these texts say together: the first 16 hexadecimal digits of their SHA-256.
pub fn digest(texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        // With their lengths, so that no two lists of texts run into the same bytes.
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("below/it"));
        (folder, cache)
    }

    #[test]
    fn entries_come_back_and_replace_each_other() {
        let (_folder, cache) = temporary();
        assert_eq!(cache.read::<Vec<u32>>("a.json").unwrap(), None);
        for numbers in [vec![1, 2], vec![3]] {
            let path = cache.write("a.json", &numbers).unwrap();
            assert_eq!(path, cache.path("a.json"));
            assert_eq!(cache.read::<Vec<u32>>("a.json").unwrap(), Some(numbers));
        }
        assert_eq!(fs::read_dir(cache.path("")).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn what_is_no_entry_is_named() {
        let (folder, cache) = temporary();
        cache.write("good.json", &[1]).unwrap();
        fs::create_dir(cache.path("folder.json")).unwrap();
        for (name, text) in [("half.json", "[1, "), ("other.json", "{}"), ("long.json", &"1".repeat(2 << 20))] {
            fs::write(cache.path(name), text).unwrap();
        }
        fs::write(cache.path("bytes.json"), b"\xff\xfe").unwrap();
        for name in ["folder.json", "half.json", "other.json", "long.json", "bytes.json"] {
            let error = cache.read::<Vec<u32>>(name).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(cache.write("folder.json", &[1]).is_err());
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let cache = Cache::at(file);
        for error in [cache.read::<u32>("a").unwrap_err(), cache.write("a", &1).unwrap_err()] {
            assert!(error.to_string().contains("is no folder"), "{error}");
        }
    }

    #[test]
    fn writers_of_different_names_lose_nothing() {
        let (_folder, cache) = temporary();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let cache = &cache;
                scope.spawn(move || (0..20).for_each(|i| drop(cache.write(&format!("{writer}-{i}"), &i).unwrap())));
            }
        });
        for writer in 0..4 {
            assert!((0..20).all(|i| cache.read(&format!("{writer}-{i}")).unwrap() == Some(i)));
        }
    }

    #[test]
    fn digests_tell_lists_of_texts_apart() {
        let all = [digest(&["ab", "c"]), digest(&["a", "bc"]), digest(&["abc"]), digest(&[])];
        assert!(all.iter().enumerate().all(|(i, a)| all[..i].iter().all(|b| a != b)), "{all:?}");
        assert_eq!(digest(&["x"]).len(), 16);
    }
}
