//! Files of torch.save, written here: what is read, and what is refused and how.

use std::path::PathBuf;

use crate::dtype::DType;
use crate::formats::Weights;

/// Writes pickles of protocol 2 as torch.save does.
#[derive(Clone, Default)]
struct Pickler(Vec<u8>);

impl Pickler {
    fn new() -> Self {
        Self(vec![0x80, 2])
    }
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }
    fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }
    fn int(self, n: i64) -> Self {
        self.raw(b"\x8a\x08").raw(&n.to_le_bytes())
    }
    fn ints(self, all: &[i64]) -> Self {
        all.iter().fold(self.raw(b"("), |p, &n| p.int(n)).raw(b"t")
    }
    fn storage(self, class: &str, key: &str, numel: i64) -> Self {
        self.raw(b"(").text("storage").global("torch", class).text(key).text("cpu").int(numel).raw(b"tQ")
    }
    fn tensor(self, class: &str, key: &str, numel: i64, offset: i64, sizes: &[i64], strides: &[i64]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"(")
            .storage(class, key, numel)
            .int(offset)
            .ints(sizes)
            .ints(strides)
            .raw(b"\x89")
            .ordered_dict()
            .raw(b"tR")
    }
    fn ordered_dict(self) -> Self {
        self.global("collections", "OrderedDict").raw(b")R")
    }
    /// A call of a function with one text.
    fn call(self, module: &str, name: &str, argument: &str) -> Self {
        self.global(module, name).text(argument).raw(b"\x85R")
    }
    /// A dict whose entries `f` adds, key and value in turn.
    fn dict(self, f: impl FnOnce(Self) -> Self) -> Self {
        f(self.raw(b"}(")).raw(b"u")
    }
    fn done(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// A zip archive of stored entries, as torch.save writes them.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let (start, len) = ((out.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes());
        // The padding of the extra field aligns the bytes to 64.
        let padding = (64 - (out.len() + 34 + name.len()) % 64) % 64;
        let (name_len, extra_len) = ((name.len() as u16).to_le_bytes(), (4 + padding as u16).to_le_bytes());
        let crc = crate::formats::weights::crc32(*bytes).unwrap().to_le_bytes();
        let sizes = [&crc[..], &len, &len, &name_len].concat();
        out.extend([b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0", &sizes[..], &extra_len, name.as_bytes(), b"FB"].concat());
        out.extend((padding as u16).to_le_bytes());
        out.extend(vec![b'Z'; padding]);
        out.extend_from_slice(bytes);
        directory.extend(
            [b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0", &sizes[..], &[0; 12], &start, name.as_bytes()].concat(),
        );
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (len, start) = ((directory.len() as u32).to_le_bytes(), (out.len() as u32).to_le_bytes());
    out.extend(directory);
    out.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &len, &start, &[0; 2]].concat());
    out
}

/// The old format: `storages` are key, elements and bytes.
fn legacy(object: Vec<u8>, storages: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let magic = Pickler::new().raw(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19").done();
    let system = Pickler::new().dict(|p| p.text("little_endian").raw(b"\x88")).done();
    let keys = storages.iter().fold(Pickler::new().raw(b"]("), |p, (key, ..)| p.text(key)).raw(b"e").done();
    let mut out = [magic, Pickler::new().int(1001).done(), system, object, keys].concat();
    for (_, numel, bytes) in storages {
        out.extend(numel.to_le_bytes());
        out.extend_from_slice(bytes);
    }
    out
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
    fn open(&self, bytes: &[u8]) -> Result<Weights, String> {
        Weights::open(self.write("w.pt", bytes), true).map_err(|e| e.to_string())
    }
    /// Opens an archive of one pickle and one storage of six numbers.
    fn pickle(&self, pickle: Vec<u8>) -> Result<Weights, String> {
        self.open(&zip(&[("w/data.pkl", &pickle), ("w/data/0", &six())]))
    }
}

fn six() -> Vec<u8> {
    [1f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A matrix, its transpose and its last column, all of one storage.
fn views(p: Pickler) -> Pickler {
    p.text("w")
        .tensor("FloatStorage", "0", 6, 0, &[2, 3], &[3, 1])
        .text("t")
        .tensor("FloatStorage", "0", 6, 0, &[3, 2], &[1, 3])
        .text("last")
        .tensor("FloatStorage", "0", 6, 2, &[2], &[3])
}

#[test]
fn views_of_one_storage_share_its_bytes_in_both_formats() {
    let folder = Folder::new();
    let object = Pickler::new().ordered_dict().raw(b"(");
    let object = views(object).raw(b"u").done();
    let files = [
        (zip(&[("w/data.pkl", &object), ("w/byteorder", b"little"), ("w/data/0", &six())]), true),
        (legacy(object, &[("0", 6, &six())]), false),
    ];
    for (bytes, aligned) in files {
        for map in [true, false] {
            let weights = Weights::open(folder.write("w.pt", &bytes), map).unwrap();
            assert_eq!(weights.metas().map(|(name, _)| name).collect::<Vec<_>>(), ["last", "t", "w"]);
            let [w, t, last] = ["w", "t", "last"].map(|name| weights.get(name).unwrap());
            assert_eq!(w.to_vec::<f32>(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            assert_eq!(t.to_vec::<f32>(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
            assert_eq!(last.to_vec::<f32>(), [3.0, 6.0]);
            assert!(w.buffer().same(t.buffer()) && w.buffer().same(last.buffer()));
            if aligned {
                assert_eq!(w.buffer().is_mapped(), map);
            }
        }
    }
}

#[test]
fn the_state_dict_is_found_in_a_checkpoint_and_the_rest_is_said() {
    let folder = Folder::new();
    let checkpoint = Pickler::new().dict(|p| {
        p.text("epoch")
            .int(7)
            .text("model_state_dict")
            .dict(|p| p.text("module.w").tensor("FloatStorage", "0", 6, 0, &[6], &[1]))
            .text("optimizer_state_dict")
            .dict(|p| p.text("state").dict(|p| p.int(0).tensor("FloatStorage", "9", 6, 0, &[6], &[1])))
            .text("args")
            .global("argparse", "Namespace")
            .raw(b")\x81")
            .dict(|p| p.text("lr").raw(b"G\x3f\x50\x62\x4d\xd2\xf1\xa9\xfc"))
            .raw(b"b")
    });
    let weights = folder.pickle(checkpoint.done()).unwrap();
    assert_eq!(weights.get("w").unwrap().to_vec::<f32>().len(), 6);
    assert_eq!(weights.metas().count(), 1);
    assert_eq!(weights.metadata()["epoch"], "7");
    let notes = weights.notes().join("\n");
    for said in ["model_state_dict", "optimizer_state_dict", "argparse.Namespace", "module."] {
        assert!(notes.contains(said), "{notes}");
    }
}

#[test]
fn attributes_of_a_torchscript_archive_are_named_by_their_path() {
    let folder = Folder::new();
    let module = |p: Pickler| p.global("__torch__.clip.model", "CLIP").raw(b")\x81");
    let object = module(Pickler::new())
        .dict(|p| {
            let inner = module(p.text("input_resolution").int(224).text("visual"));
            let inner = inner.dict(|p| {
                p.text("training").raw(b"\x89").text("proj").tensor("HalfStorage", "0", 12, 0, &[3, 4], &[4, 1])
            });
            inner.raw(b"b")
        })
        .raw(b"b")
        .done();
    let bytes = zip(&[("w/data.pkl", &object), ("w/constants.pkl", b"\x80\x02)."), ("w/data/0", &six())]);
    let weights = folder.open(&bytes).unwrap();
    assert_eq!(weights.format(), "TorchScript archive");
    assert_eq!((weights.meta("visual.proj").unwrap().dtype, weights.metadata().len()), (DType::F16, 1));
}

#[test]
fn what_a_pickle_would_execute_is_refused_by_name() {
    let folder = Folder::new();
    let beside = |f: fn(Pickler) -> Pickler| {
        folder.pickle(f(Pickler::new().raw(b"}(").text("state_dict").dict(views).text("x")).raw(b"u").done())
    };
    let refused = [
        (beside(|p| p.call("posix", "system", "true")), "posix.system"),
        (beside(|p| p.call("builtins", "eval", "1")), "builtins.eval"),
        (beside(|p| p.text("os").text("system").raw(b"\x93").text("true").raw(b"\x85R")), "os.system"),
        (beside(|p| p.global("subprocess", "Popen").raw(b")\x81")), "subprocess.Popen"),
        (beside(|p| p.call("builtins", "getattr", "x").text("true").raw(b"\x85R")), "builtins.getattr"),
    ];
    for (outcome, name) in refused {
        let error = outcome.err().unwrap();
        assert!(error.contains(name) && error.contains("refused"), "{error}");
    }
    // Where the tensors do not need it, an unknown object is skipped; in their place it is refused.
    let skipped = beside(|p| p.call("some.where", "Thing", "x")).unwrap();
    assert!(skipped.notes().iter().any(|note| note.contains("some.where.Thing")), "{:?}", skipped.notes());
    let error =
        folder.pickle(Pickler::new().dict(|p| views(p).text("x").call("torch._utils", "_rebuild_qtensor", "")).done());
    assert!(error.err().unwrap().contains("torch._utils._rebuild_qtensor"));
}

#[test]
fn impossible_tensors_are_refused_by_name() {
    let folder = Folder::new();
    let one = |class: &str, numel: i64, offset: i64, sizes: &[i64], strides: &[i64]| {
        let pickle = Pickler::new().dict(|p| p.text("w").tensor(class, "0", numel, offset, sizes, strides)).done();
        let error = folder.pickle(pickle).err().unwrap();
        assert!(error.contains("w.pt") && error.contains("tensor"), "{error}");
        error
    };
    assert!(one("FloatStorage", 6, -1, &[2], &[1]).contains("negative"));
    assert!(one("FloatStorage", 6, 3, &[2], &[-1]).contains("negative"));
    assert!(one("FloatStorage", 6, 0, &[-2], &[1]).contains("negative"));
    assert!(one("FloatStorage", 6, 5, &[2], &[1]).contains("beyond"));
    assert!(one("FloatStorage", 6, 0, &[2, 2], &[i64::MAX, 1]).contains("beyond"));
    assert!(one("FloatStorage", 7, 0, &[2], &[1]).contains("24 bytes"));
    assert!(one("FloatStorage", i64::MAX, 0, &[2], &[1]).contains("24 bytes"));
    assert!(one("FloatStorage", 6, 0, &[i64::MAX, i64::MAX, 0], &[0, 0, 0]).contains("more elements"));
    assert!(one("FloatStorage", 6, 0, &[1 << 20, 1 << 20], &[0, 0]).contains("repeated"));
    assert!(one("FloatStorage", 6, 0, &[1; 7], &[1; 7]).contains("7 dimensions"));
    assert!(one("ComplexFloatStorage", 3, 0, &[3], &[1]).contains("complex64"));
}

#[test]
fn bombs_end_early() {
    let folder = Folder::new();
    let error = |pickle: Vec<u8>, word: &str| {
        let error = folder.pickle(pickle).err().unwrap();
        assert!(error.contains(word), "{error}");
    };
    // Lists inside each other, closed; and only opened.
    let depth = 20_000;
    let nested = [vec![b']'; depth], vec![b'a'; depth - 1]].concat();
    error(Pickler::new().raw(&nested).done(), "holds a list");
    error(Pickler::new().raw(&vec![b']'; 1 << 20]).done(), "more objects");
    error(Pickler::new().raw(&vec![b'('; 4 << 20]).done(), "more objects");
    // A chain of dicts, each with the next one twice: 2^60 paths.
    let chain = (0..60u8).fold(Pickler::new().dict(|p| p), |p, i| {
        p.raw(b"q").raw(&[i]).raw(b"0}(").text("a").raw(b"h").raw(&[i]).text("b").raw(b"h").raw(&[i]).raw(b"u")
    });
    error(chain.done(), "too often");
    // A dict that holds itself.
    error(Pickler::new().raw(b"}q\0").text("model").raw(b"h\0s").done(), "deeper");
    // Declared sizes beyond the file.
    error(Pickler::new().raw(b"X\xff\xff\xff\xff").done(), "cut short");
    error(Pickler::new().raw(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff").done(), "cut short");
    error(Pickler::new().raw(b"\x8b\xff\xff\xff\x7f").done(), "cut short");
    // A stack that is empty, a mark that is not there, an object that was not made, an instruction of no use here.
    for (bytes, word) in
        [(&b"R"[..], "empty stack"), (b"u", "not opened"), (b"h\x07", "object 7"), (b"Itrue\n", "0x49")]
    {
        error(Pickler::new().raw(bytes).done(), word);
    }
}

#[test]
fn cut_files_and_flipped_bits_are_no_panics() {
    let folder = Folder::new();
    let object = Pickler::new().dict(views).done();
    for whole in [zip(&[("w/data.pkl", &object), ("w/data/0", &six())]), legacy(object.clone(), &[("0", 6, &six())])] {
        assert!(folder.open(&whole).is_ok());
        for cut in (0..whole.len()).rev().step_by(5) {
            let error = folder.open(&whole[..cut]).err().unwrap_or_else(|| panic!("a file cut at {cut} was read"));
            assert!(error.contains("w.pt"), "{error}");
        }
        for byte in (0..whole.len()).step_by(3) {
            let mut flipped = whole.clone();
            flipped[byte] ^= 1 << (byte % 8);
            if let Ok(weights) = folder.open(&flipped) {
                weights.iter().for_each(|(_, t)| drop(t.to_f64_vec()));
            }
        }
    }
}

#[test]
fn other_files_are_recognised() {
    let folder = Folder::new();
    let big = zip(&[("w/data.pkl", &Pickler::new().dict(views).done()), ("w/byteorder", b"big"), ("w/data/0", &six())]);
    for (bytes, word) in [
        (&big[..], "byte order \"big\""),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"", "cut short"),
        (&zip(&[("word/document.xml", b"<x/>")]), "word/document.xml"),
        (&Pickler::new().dict(|p| p).done(), "not of torch.save"),
    ] {
        let error = folder.open(bytes).err().unwrap();
        assert!(error.contains(word), "{error}");
    }
}

/// Values of the parity files as torch reads them (`torch.load`, then sums of absolute values).
#[test]
fn parity_files_have_torchs_values() {
    let Some(parity) = crate::shared::shared("parity") else { return };
    for (file, tensors, total) in [
        ("openai-clip-tiny.pt", 62, 43651.50105872332),
        ("tier-tiny.pt", 170, 53450.577034728936),
        ("biovil-resnet-tiny.pt", 112, 28905.25883975397),
        ("biomedclip-tiny/open_clip_pytorch_model.bin", 72, 31836.44946700951),
    ] {
        let weights = Weights::open(parity.join(file), true).unwrap();
        assert_eq!(weights.metas().count(), tensors, "{file}");
        let sum: f64 = weights.iter().flat_map(|(_, t)| t.to_f64_vec()).map(f64::abs).sum();
        assert!((sum - total).abs() < 1e-6 * total, "{file}: {sum} for {total}");
    }
}

#[test]
fn flipped_bits_are_found_by_the_checksums() {
    let pickle = Pickler::new()
        .dict(|p| {
            let p = p.text("a").tensor("FloatStorage", "0", 6, 0, &[6], &[1]);
            p.text("b").tensor("FloatStorage", "1", 6, 0, &[2, 3], &[3, 1])
        })
        .done();
    let good = zip(&[("w/data.pkl", &pickle), ("w/data/0", &six()), ("w/data/1", &six())]);
    let folder = Folder::new();
    let check = |bytes: &[u8]| folder.open(bytes).unwrap().check().map_err(|e| e.to_string());
    check(&good).unwrap();
    let places: Vec<usize> = (0..good.len() - 24).filter(|&at| good[at..].starts_with(&six())).collect();
    let (mut flipped, mut both) = (good.clone(), good.clone());
    flipped[places[1] + 5] ^= 8;
    let error = check(&flipped).unwrap_err();
    assert!(error.contains("w.pt: damaged: 1 of 3 parts") && error.contains("data/1;"), "{error}");
    both[places[0]] ^= 1;
    both[places[1]] ^= 1;
    assert!(check(&both).unwrap_err().contains("2 of 3 parts"));
    // torch.save can be told to leave all checksums out.
    let mut without = good.clone();
    for at in 0..good.len() - 4 {
        if good[at..].starts_with(b"PK\x01\x02") {
            without[at + 16..at + 20].fill(0);
        }
    }
    check(&without).unwrap();
}
