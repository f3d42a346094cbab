pub struct Model;
impl Model { pub fn new(_: &crate::program::Program, _: crate::target::Isa, _: usize, _: Option<crate::machine::Facts>) -> Self { Self }
 pub fn forecast(&self, _: &crate::program::Body) -> crate::cost::Forecast { Default::default() }
 pub fn words(&self, _: &crate::program::Body) -> Option<String> { None } }
