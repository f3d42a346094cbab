//! Pages that a command leaves behind: one file each, without scripts and without anything from elsewhere.
//!
//! Colours are custom properties of [`crate::picture::STYLE`] with a light and a dark set, taken by what the reader
//! prefers. Wide tables scroll in themselves, so that a page never is wider than a phone.

use std::time::SystemTime;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::machine;
use crate::picture::STYLE;

pub mod chart;

const PAGE: &str = "\
*{box-sizing:border-box}\
body{margin:0 auto;max-width:1120px;padding:24px 16px 48px;background:var(--ground);color:var(--ink);\
font:16px/1.5 system-ui,sans-serif;overflow-wrap:break-word}\
h1{font-size:1.6rem;line-height:1.2;margin:0 0 4px}h2{font-size:1.2rem;margin:40px 0 8px}h3{font-size:1rem;margin:24px 0 4px}\
p{margin:4px 0 8px;max-width:75ch}.faint,figcaption{color:var(--faint)}\
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}\
.card{border:1px solid var(--line);border-radius:8px;padding:10px 12px}\
.card b{display:block;font-size:1.3rem;line-height:1.3}.card span{color:var(--faint);font-size:.85rem}\
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:20px}\
.figures.one{grid-template-columns:minmax(0,540px)}figure{margin:0;min-width:0}figure svg{display:block;width:100%;height:auto}\
figcaption{font-size:.9rem;margin-top:4px}\
.picture svg text{font-size:17px}a{color:var(--c0)}\
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:.9rem;color:var(--faint);margin:8px 0 12px}\
.legend span{display:inline-flex;align-items:center;gap:6px}.legend svg{width:12px;height:12px;flex:none}\
.scroll{overflow-x:auto}\
table{border-collapse:collapse;width:100%;font-size:.92rem}\
th,td{text-align:left;padding:5px 14px 5px 0;border-top:1px solid var(--line);vertical-align:top}\
thead th{border-top:0;color:var(--faint);font-weight:500}tbody th{font-weight:500;white-space:nowrap}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
.l0{stroke:var(--c0)}.l1{stroke:var(--c1)}.l2{stroke:var(--c2)}.l3{stroke:var(--c3)}\
.line{fill:none;stroke-width:2}.grid{stroke:var(--line);stroke-width:1}";

/// A page with its title, a line below it, and its body; the machine and the date stand at the end.
pub fn page(title: &str, below: &Markup, body: &Markup) -> String {
    let machine = machine::describe();
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(PAGE)) }
            }
            body {
                header { h1 { (title) } (below) }
                main { (body) }
                footer.faint {
                    h2 { "Made on" }
                    p {
                        (machine.cpu) ", " (machine.cores) @if machine.cores == 1 { " core, " } @else { " cores, " }
                        (machine.platform) ", "
                        time datetime=(date) { (date.replace('T', " ").replace('Z', " UTC")) }
                        ", hopweave " (env!("CARGO_PKG_VERSION"))
                    }
                }
            }
        }
    };
    page.into_string()
}

/// A number with what it is.
pub fn card(number: &str, what: &str) -> Markup {
    html! { div.card { b { (number) } span { (what) } } }
}

/// A square of a class's colour.
pub fn swatch(class: usize) -> Markup {
    html! {
        svg viewBox="0 0 12 12" aria-hidden="true" { rect.{ "f" (class % CLASSES) } width="12" height="12" rx="2" {} }
    }
}

/// Colours that there are.
pub const CLASSES: usize = 4;

/// A table whose columns from the second on are numbers.
pub fn table(head: &[String], rows: &[Vec<String>]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                @for (at, name) in head.iter().enumerate() { th scope="col" class=[(at > 0).then_some("n")] { (name) } }
            } }
            tbody { @for row in rows { tr {
                @for (at, cell) in row.iter().enumerate() {
                    @if at == 0 { th scope="row" { (cell) } } @else { td.n { (cell) } }
                }
            } } }
        } }
    }
}
