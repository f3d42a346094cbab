//! The pattern files that come with the library, by name.

macro_rules! shipped {
    ($($name:literal,)*) => {
        /// Name and text of every one, in order of their names.
        pub const SHIPPED: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../patterns/", $name, ".yaml")))),*];
    };
}

shipped! {
    "alibi-causal",
    "axial",
    "bigbird",
    "causal",
    "diffuser",
    "diffuser-reference",
    "dilated-window",
    "full",
    "gemma-alternating",
    "hymba-like",
    "local-chunks",
    "logsparse",
    "longformer",
    "mistral-swa",
    "moa-elastic",
    "natten-2d",
    "packed-documents",
    "prefix-lm",
    "sliding-window",
    "sparse-transformer-fixed",
    "sparse-transformer-strided",
    "splash-local",
    "streaming-llm",
    "streaming-sink",
    "tensorized",
}

/// The text of the pattern file of this name.
pub fn shipped(name: &str) -> Option<&'static str> {
    SHIPPED.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_file_is_shipped() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("patterns");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<String> = files
            .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        assert_eq!(files, SHIPPED.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for (name, text) in SHIPPED {
            assert_eq!(crate::spec::parse(text, name).unwrap().name, *name);
        }
        assert_eq!(shipped("longformers"), None);
    }
}
