//! Tensors in `.npy` files: C order, little-endian f32, f16 or bf16.
//!
//! In: paths. Out: arrays, or written files. Refused, with what was found and what was expected: another
//! element type, Fortran order, another number of axes, files that are cut short or no `.npy` at all.
//! [`write_all`] writes several files or none.
//!
//! numpy has no bf16. Arrays of the `bfloat16` of the `ml_dtypes` package are saved as two bytes without a meaning,
//! `<V2`; so they are written here, and read where the caller says that they are bf16.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use ndarray::{Array, ArrayD, ArrayView, ArrayViewD, Dimension, IxDyn};
use ndarray_npy::{ViewNpyExt, WriteNpyExt};
use tempfile::NamedTempFile;

use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};

/// What a `.npy` file's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The element type as numpy writes it, such as `<f4`.
    pub descr: String,
    /// Whether the first axis varies fastest.
    pub fortran_order: bool,
    /// The shape.
    pub shape: Vec<usize>,
    /// Where the elements start in the file.
    pub offset: u64,
}

/// Reads the header alone, and checks that it describes a tensor of `dtype` in C order with `axes.len()` axes and
/// that the file is as long as it says; `axes` names the axes for messages.
///
/// # Errors
/// [`Error::Input`] as in the module's description.
pub fn check(path: &Path, axes: &[&str], dtype: Dtype) -> Result<Header> {
    let wrong = |message: String| Error::Input { path: path.into(), message };
    let file = open(path)?;
    let length = file.metadata().map_err(|error| wrong(error.to_string()))?.len();
    let header = read_header(&mut BufReader::new(file)).map_err(|what| {
        wrong(if length == 0 { "is empty; expected a .npy file".into() } else { format!("is no .npy file: {what}") })
    })?;
    if !descrs(dtype).contains(&header.descr.as_str()) {
        let expected = match dtype {
            Dtype::F32 => "`<f4` (float32)",
            Dtype::F16 => "`<f2` (float16)",
            Dtype::Bf16 => "`<V2` (bfloat16 of ml_dtypes)",
        };
        return Err(wrong(format!(
            "holds elements of type `{}`; expected {expected}{}",
            header.descr,
            hint(&header, dtype)
        )));
    }
    if header.fortran_order && header.shape.len() > 1 {
        return Err(wrong("is in Fortran order; expected C order: save `numpy.ascontiguousarray(x)`".into()));
    }
    if header.shape.len() != axes.len() {
        return Err(wrong(format!(
            "has {} axes, {:?}; expected {}: [{}]",
            header.shape.len(),
            header.shape,
            axes.len(),
            axes.join(", ")
        )));
    }
    let bytes = header.shape.iter().try_fold(dtype.bytes() as u64, |bytes, &extent| bytes.checked_mul(extent as u64));
    let expected = bytes.and_then(|bytes| bytes.checked_add(header.offset));
    if expected != Some(length) {
        let expected = expected.map_or("more than any file".into(), |bytes| bytes.to_string());
        return Err(wrong(format!("is {length} bytes long; its shape {:?} asks for {expected}", header.shape)));
    }
    Ok(header)
}

/// The element types of a file that holds tensors of `dtype`, as numpy writes them; the first is written.
const fn descrs(dtype: Dtype) -> &'static [&'static str] {
    match dtype {
        Dtype::F32 => &["<f4"],
        Dtype::F16 => &["<f2"],
        Dtype::Bf16 => &["<V2", "|V2", "bfloat16"],
    }
}

/// What to do about a file of another type.
fn hint(header: &Header, dtype: Dtype) -> String {
    let is_of = |dtype: Dtype| descrs(dtype).contains(&header.descr.as_str());
    let convert = match dtype {
        Dtype::F32 if is_of(Dtype::Bf16) => "x.view(ml_dtypes.bfloat16).astype('<f4')",
        Dtype::F16 if is_of(Dtype::Bf16) => "x.view(ml_dtypes.bfloat16).astype('<f2')",
        Dtype::F32 => "x.astype('<f4')",
        Dtype::F16 => "x.astype('<f2')",
        Dtype::Bf16 => "x.astype(ml_dtypes.bfloat16)",
    };
    let known = matches!(header.descr.as_str(), "<f8" | ">f8" | ">f4" | ">f2");
    match Dtype::ALL.into_iter().find(|&other| is_of(other)) {
        Some(other) => format!("; convert with `{convert}`, or write `dtype: {other}` in the spec"),
        None if known => format!("; convert with `{convert}`"),
        None => String::new(),
    }
}

/// Whether a file holds bools or bytes (`|b1` or `|u1`).
///
/// # Errors
/// [`Error::Input`] where the file cannot be read, or is no `.npy` file.
pub fn holds_bytes(path: &Path) -> Result<bool> {
    let header = read_header(&mut BufReader::new(open(path)?));
    let header =
        header.map_err(|what| Error::Input { path: path.into(), message: format!("is no .npy file: {what}") })?;
    Ok(matches!(header.descr.as_str(), "|b1" | "|u1"))
}

/// Reads an array of integers (`<i4` or `<i8`, as numpy makes them; bools and bytes too) with `axes.len()` axes.
///
/// # Errors
/// [`Error::Input`] for anything else.
pub fn read_integers<D: Dimension>(path: &Path, axes: &[&str]) -> Result<Array<i64, D>> {
    let wrong = |message: String| Error::Input { path: path.into(), message };
    let bytes = std::fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let header = read_header(&mut bytes.as_slice()).map_err(|what| wrong(format!("is no .npy file: {what}")))?;
    // A view checks the shape against the bytes that are there.
    let array = match header.descr.as_str() {
        "<i4" => ArrayViewD::<i32>::view_npy(&bytes).map(|view| view.mapv(i64::from)),
        "<i8" => ArrayViewD::<i64>::view_npy(&bytes).map(|view| view.to_owned()),
        "|u1" => ArrayViewD::<u8>::view_npy(&bytes).map(|view| view.mapv(i64::from)),
        "|b1" => ArrayViewD::<bool>::view_npy(&bytes).map(|view| view.mapv(i64::from)),
        other => {
            let message = format!("holds elements of type `{other}`; expected integers, `<i4` or `<i8`");
            return Err(wrong(format!("{message}; convert with `x.astype('<i4')`")));
        }
    };
    let array = array.map_err(|error| wrong(error.to_string()))?;
    let found = array.shape().to_vec();
    array.as_standard_layout().into_owned().into_dimensionality().map_err(|_| {
        wrong(format!("has {} axes, {found:?}; expected {}: [{}]", found.len(), axes.len(), axes.join(", ")))
    })
}

/// Reads a tensor whose header [`check`] has accepted for the dtype of `T`.
///
/// # Errors
/// [`Error::Input`] where the file cannot be read (any more).
pub fn read<T: Element, D: Dimension>(path: &Path) -> Result<Array<T, D>> {
    /// Bytes read at a time.
    const PORTION: usize = 1 << 16;
    let wrong = |message: String| Error::Input { path: path.into(), message };
    let mut file = BufReader::with_capacity(PORTION, open(path)?);
    let header = read_header(&mut file).map_err(&wrong)?;
    if !descrs(T::DTYPE).contains(&header.descr.as_str()) || header.fortran_order && header.shape.len() > 1 {
        return Err(wrong(format!("holds elements of type `{}`, or in Fortran order", header.descr)));
    }
    let too_long = || wrong(format!("has a shape beyond all memory, {:?}", header.shape));
    let count = header.shape.iter().try_fold(1_usize, |count, &extent| count.checked_mul(extent));
    let bytes = count.and_then(|count| count.checked_mul(T::DTYPE.bytes())).ok_or_else(too_long)?;
    let mut elements = Vec::new();
    let mut portion = vec![0_u8; PORTION.min(bytes)];
    let mut left = bytes;
    // The file may have become shorter since it was checked: memory is taken as it is read.
    while left > 0 {
        let portion = &mut portion[..PORTION.min(left)];
        file.read_exact(portion).map_err(|error| wrong(error.to_string()))?;
        elements.extend(portion.chunks_exact(T::DTYPE.bytes()).map(T::from_le));
        left -= portion.len();
    }
    let axes = header.shape.len();
    let array = ArrayD::from_shape_vec(IxDyn(&header.shape), elements).map_err(|error| wrong(error.to_string()))?;
    array.into_dimensionality::<D>().map_err(|_| wrong(format!("has {axes} axes")))
}

/// A tensor to write, whatever its axes and elements.
pub trait Writable {
    /// Writes a whole file.
    ///
    /// # Errors
    /// Those of the writer.
    fn write_to(&self, writer: &mut dyn Write) -> io::Result<()>;
}

impl<T: Element, D: Dimension> Writable for Array<T, D> {
    fn write_to(&self, writer: &mut dyn Write) -> io::Result<()> {
        write(self, writer)
    }
}

/// Bools, as bytes that are 0 or 1.
#[derive(Debug)]
pub struct Bools<'a, D: Dimension>(pub ArrayView<'a, u8, D>);

impl<D: Dimension> Writable for Bools<'_, D> {
    fn write_to(&self, writer: &mut dyn Write) -> io::Result<()> {
        self.0.mapv(|x| x != 0).write_npy(writer).map_err(io::Error::other)
    }
}

/// Writes header and elements, in C order.
fn write<T: Element, D: Dimension>(array: &Array<T, D>, writer: &mut dyn Write) -> io::Result<()> {
    /// Magic, version and length; numpy aligns what follows the header to 64 bytes.
    const START: usize = 10;
    const ALIGN: usize = 64;
    let extents: String = array.shape().iter().map(|extent| format!("{extent}, ")).collect();
    // A trailing comma belongs to a single extent alone.
    let extents = if array.ndim() == 1 { extents.trim_end() } else { extents.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({extents}), }}", descrs(T::DTYPE)[0]);
    let spaces = (START + header.len() + 1).next_multiple_of(ALIGN) - (START + header.len() + 1);
    header.extend(std::iter::repeat_n(' ', spaces));
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(io::Error::other)?;
    writer.write_all(b"\x93NUMPY\x01\x00")?;
    writer.write_all(&length.to_le_bytes())?;
    writer.write_all(header.as_bytes())?;
    let mut bytes = Vec::new();
    for row in array.rows() {
        bytes.clear();
        row.iter().for_each(|&x| x.to_le(&mut bytes));
        writer.write_all(&bytes)?;
    }
    Ok(())
}

/// Writes all files, or none of them: each is written beside its place and moved there when all are complete.
///
/// # Errors
/// [`Error::Input`]; files that were there before are then as they were, unless moving itself fails between
/// two of them.
pub fn write_all(files: &[(&Path, &dyn Writable)]) -> Result<()> {
    let wrong = |path: &Path, what: &dyn std::fmt::Display| Error::Input {
        path: path.into(),
        message: format!("cannot be written: {what}"),
    };
    let mut written = Vec::with_capacity(files.len());
    for (path, tensor) in files {
        check_output(path)?;
        // Through a link to the file behind it.
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let temporary = NamedTempFile::new_in(folder(path)).map_err(|error| wrong(path, &error))?;
        let mut writer = BufWriter::new(temporary.as_file());
        tensor.write_to(&mut writer).map_err(|error| wrong(path, &error))?;
        writer.flush().map_err(|error| wrong(path, &error))?;
        drop(writer);
        share_mode(&temporary, path).map_err(|error| wrong(path, &error))?;
        written.push((path.clone(), temporary));
    }
    for (path, temporary) in written {
        temporary.persist(&path).map_err(|error| wrong(&path, &error.error))?;
    }
    Ok(())
}

/// Refuses an output path that could not be written, before any work is done for it.
///
/// # Errors
/// [`Error::Input`] where the folder does not exist or the path is a folder itself.
pub fn check_output(path: &Path) -> Result<()> {
    let wrong = |message: String| Err(Error::Input { path: path.into(), message });
    match fs::metadata(path) {
        Ok(data) if data.is_dir() => return wrong("is a folder; expected the name of a file".into()),
        // Moving a file to the place of a device or a pipe would do away with it.
        Ok(data) if !data.is_file() => return wrong("is no regular file; expected the name of one".into()),
        _ => {}
    }
    if path.file_name().is_none() {
        return wrong("names no file".into());
    }
    if !folder(path).is_dir() {
        return wrong(format!("cannot be written: there is no folder {}", folder(path).display()));
    }
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    let wrong = |message: String| Error::Input { path: path.into(), message };
    let file = File::open(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    match file.metadata() {
        Ok(data) if data.is_dir() => Err(wrong("is a folder; expected a .npy file".into())),
        _ => Ok(file),
    }
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.into(),
        _ => ".".into(),
    }
}

/// Temporary files are private; an output gets the mode of the file it replaces, or that of a file that
/// everyone may read.
#[cfg(unix)]
pub(crate) fn share_mode(temporary: &NamedTempFile, path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).map_or(0o644, |data| data.permissions().mode() & 0o777);
    temporary.as_file().set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
pub(crate) fn share_mode(_: &NamedTempFile, _: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Reads the magic, the version and the header's dictionary.
fn read_header(file: &mut impl Read) -> Result<Header, String> {
    let short = |_| "its header is cut short".to_string();
    let mut start = [0_u8; 8];
    file.read_exact(&mut start).map_err(short)?;
    if &start[..6] != b"\x93NUMPY" {
        return Err("it does not start with the mark of one".into());
    }
    let width: u64 = match start[6] {
        1 => 2,
        2 | 3 => 4,
        version => return Err(format!("its version is {version}; known are 1 to 3")),
    };
    let mut length = [0_u8; 4];
    file.read_exact(&mut length[..width as usize]).map_err(short)?;
    let length = u32::from_le_bytes(length);
    if length > 1 << 20 {
        return Err(format!("its header claims {length} bytes"));
    }
    let mut text = vec![0_u8; length as usize];
    file.read_exact(&mut text).map_err(short)?;
    let text = String::from_utf8_lossy(&text);
    let value = |key: &str| {
        let after = text.split_once(&format!("'{key}':"))?.1;
        Some(after.trim_start().to_string())
    };
    let bad = || format!("its header is {:?}", text.trim_end());
    let descr = value("descr").ok_or_else(bad)?;
    let order = value("fortran_order").ok_or_else(bad)?;
    let shape = value("shape").ok_or_else(bad)?;
    let shape = shape.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or_else(bad)?.0.to_string();
    let extents = shape.split(',').map(str::trim).filter(|extent| !extent.is_empty());
    Ok(Header {
        descr: match descr.strip_prefix('\'') {
            Some(rest) => rest.split('\'').next().unwrap_or_default().into(),
            // Structured types are written as a list.
            None => descr.split(']').next().unwrap_or_default().to_string() + "]",
        },
        fortran_order: order.starts_with("True"),
        shape: extents.map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?,
        offset: 8 + width + u64::from(length),
    })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use ndarray::{Array3, Array4, Ix4};

    use super::*;

    const AXES: [&str; 4] = ["batch", "heads", "length", "width"];

    /// Bytes of a version 1 file.
    fn npy(header: &str, elements: usize) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; elements]);
        bytes
    }

    fn refusal(bytes: &[u8]) -> String {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        let error = check(file.path(), &AXES, Dtype::F32).unwrap_err().to_string();
        error.strip_prefix(&format!("{}: ", file.path().display())).unwrap().to_string()
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.npy"), folder.path().join("b.npy"));
        let out = Array4::from_shape_fn((2, 3, 4, 5), |(b, h, i, x)| (b * 60 + h * 20 + i * 5 + x) as f32);
        let lse = Array3::from_elem((2, 3, 4), f32::NEG_INFINITY);
        write_all(&[(&a, &out), (&b, &lse)]).unwrap();
        assert_eq!(check(&a, &AXES, Dtype::F32).unwrap().shape, [2, 3, 4, 5]);
        assert_eq!(read::<f32, Ix4>(&a).unwrap(), out);
        assert_eq!(check(&b, &AXES[..3], Dtype::F32).unwrap().shape, [2, 3, 4]);
        assert_eq!(ndarray_npy::read_npy::<_, Array3<f32>>(&b).unwrap(), lse, "another library reads it");
        assert_eq!(fs::read(&b).unwrap().len() % 64, 4 * 24 % 64, "elements start at 64 bytes");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary files are left");
    }

    #[test]
    fn halves_are_written_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.npy"), folder.path().join("b.npy"));
        let number = |(b, h, i, x): (usize, usize, usize, usize)| (b * 60 + h * 20 + i * 5 + x) as f32 / 7.0;
        let bf = Array4::from_shape_fn((2, 3, 4, 5), |place| bf16::from_f32(number(place)));
        // Not in C order in memory.
        let half = Array4::from_shape_fn((5, 4, 3, 2), |place| f16::from_f32(number(place))).reversed_axes();
        write_all(&[(&a, &bf), (&b, &half)]).unwrap();
        let header = check(&a, &AXES, Dtype::Bf16).unwrap();
        assert_eq!((header.descr.as_str(), header.shape.as_slice()), ("<V2", &[2, 3, 4, 5][..]));
        assert_eq!(read::<bf16, Ix4>(&a).unwrap(), bf);
        assert_eq!(check(&b, &AXES, Dtype::F16).unwrap().descr, "<f2");
        assert_eq!(read::<f16, Ix4>(&b).unwrap(), half);
        let message = check(&a, &AXES, Dtype::F16).unwrap_err().to_string();
        assert!(message.ends_with(
            "holds elements of type `<V2`; expected `<f2` (float16); \
             convert with `x.view(ml_dtypes.bfloat16).astype('<f2')`, or write `dtype: bf16` in the spec"
        ));
        // As numpy writes 1, 2, -0.5 and 3 of ml_dtypes.bfloat16, and by other names of the type.
        for descr in ["<V2", "|V2", "bfloat16"] {
            let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1, 1, 2, 2), }}\n");
            let mut bytes = npy(&header, 0);
            bytes.extend([0x80, 0x3f, 0x00, 0x40, 0x00, 0xbf, 0x40, 0x40]);
            fs::write(&a, bytes).unwrap();
            check(&a, &AXES, Dtype::Bf16).unwrap();
            let found = read::<bf16, Ix4>(&a).unwrap();
            assert_eq!(found.mapv(bf16::to_f32).into_raw_vec_and_offset().0, [1.0, 2.0, -0.5, 3.0]);
        }
        // Shortened between looking and reading.
        fs::write(&a, &fs::read(&a).unwrap()[..80]).unwrap();
        read::<bf16, Ix4>(&a).unwrap_err();
    }

    #[test]
    fn one_bad_path_leaves_all_files_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let (good, bad) = (folder.path().join("a.npy"), folder.path().join("nowhere").join("b.npy"));
        fs::write(&good, "before").unwrap();
        let out = Array4::<f32>::zeros((1, 1, 1, 1));
        write_all(&[(&good, &out), (&bad, &out)]).unwrap_err();
        assert_eq!(fs::read(&good).unwrap(), b"before");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn refusals_say_what_was_found_and_expected() {
        let header = |descr: &str, fortran: &str, shape: &str| {
            format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
        };
        assert_eq!(refusal(b""), "is empty; expected a .npy file");
        assert_eq!(refusal(b"PK\x03\x04 zip, not npy"), "is no .npy file: it does not start with the mark of one");
        assert_eq!(refusal(b"\x93NUMPY\x01\x00\xff"), "is no .npy file: its header is cut short");
        assert_eq!(
            refusal(&npy(&header("<f8", "False", "(1, 1, 2, 2)"), 32)),
            "holds elements of type `<f8`; expected `<f4` (float32); convert with `x.astype('<f4')`"
        );
        assert_eq!(
            refusal(&npy(&header("<f4", "True", "(1, 1, 2, 2)"), 16)),
            "is in Fortran order; expected C order: save `numpy.ascontiguousarray(x)`"
        );
        assert_eq!(
            refusal(&npy(&header("<f4", "False", "(6,)"), 24)),
            "has 1 axes, [6]; expected 4: [batch, heads, length, width]"
        );
        let short = npy(&header("<f4", "False", "(1, 1, 2, 2)"), 12);
        assert_eq!(
            refusal(&short),
            format!("is {} bytes long; its shape [1, 1, 2, 2] asks for {}", short.len(), short.len() + 4)
        );
        let huge = npy(&header("<f4", "False", "(4294967296, 4294967296, 2, 2)"), 16);
        assert!(refusal(&huge).ends_with("asks for more than any file"));
        assert!(refusal(&npy("{'descr': '<f4'}", 0)).starts_with("is no .npy file: its header is "));
    }

    #[test]
    fn outputs_are_checked_early() {
        let folder = tempfile::tempdir().unwrap();
        check_output(&folder.path().join("new.npy")).unwrap();
        check_output(Path::new("new.npy")).unwrap();
        let error = check_output(&folder.path().join("no").join("new.npy")).unwrap_err().to_string();
        assert!(error.contains("there is no folder"), "{error}");
        assert!(check_output(folder.path()).unwrap_err().to_string().contains("is a folder"));
        #[cfg(unix)]
        assert!(check_output(Path::new("/dev/null")).unwrap_err().to_string().contains("is no regular file"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file.npy"), folder.path().join("link.npy"));
        fs::write(&file, "before").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_all(&[(&link, &Array4::<f32>::ones((1, 1, 1, 1)))]).unwrap();
        assert!(link.is_symlink());
        assert_eq!(read::<f32, Ix4>(&file).unwrap(), Array4::<f32>::ones((1, 1, 1, 1)));
    }
}
