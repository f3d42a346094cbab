//! What tiles are compiled with, against what the CPU is asked for: a family's list of features holds all that its files
//! enable, and the bodies that all families share enable none of their own.

use hopweave::target::Isa;

use crate::architecture::sources;

/// Every list of features in `target_feature(enable = "...")`, and in calls of `family_table!`.
fn lists(code: &str) -> impl Iterator<Item = &str> {
    let enabled = code.split("enable = \"").skip(1);
    let tables = code.split("family_table!(").skip(1).filter_map(|call| call.split_once('"').map(|(_, list)| list));
    enabled.chain(tables).filter_map(|list| list.split('"').next())
}

#[test]
fn every_feature_is_asked_for() {
    let mut found = 0;
    for (path, code) in sources().iter().filter(|(path, _)| path.starts_with("src/tiles")) {
        let name = path.iter().nth(2).expect("a file of `tiles`").to_string_lossy().replace(".rs", "");
        let of_family = Isa::ALL.into_iter().find(|isa| isa.name() == name);
        let asked = match name.as_str() {
            // `Dots::available` asks for the last one, behind the family.
            "dots" => [Isa::Avx512.features(), &["avx512bf16"]].concat(),
            // Where a machine runs no family, the peak asks for it alone.
            "peak" => vec!["fma"],
            _ => of_family.map(Isa::features).unwrap_or_default().to_vec(),
        };
        for feature in lists(code).flat_map(|list| list.split(',')) {
            found += 1;
            assert!(asked.contains(&feature), "{} enables {feature}, which nothing asks the CPU for", path.display());
        }
    }
    assert!(found > 20, "{found} features");
}
