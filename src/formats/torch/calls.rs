//! The callables that tensors need, each as a description of what it would make; nothing is ever called.

use super::pickle::{Global, Id, Pickle, StorageKey, Stored, Value, View};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::formats::weights;
use crate::layout::{Dims, Layout};

/// Elements that a tensor may have beyond its storage's, by strides of zero.
const MAX_EXPANDED: usize = 1 << 20;

/// What a call of `function` with the tuple `args` makes.
///
/// # Errors
/// If the arguments are not what the function takes, or the function is one that only an attack calls.
pub(super) fn call<'a>(pickle: &mut Pickle<'a>, function: Global<'a>, args: Id) -> Result<Value<'a>> {
    let wrong = || Error::new(format!("calls {function} with arguments that it does not take; the file is damaged"));
    let given = pickle.items(args).ok_or_else(wrong)?;
    let first = given.first().copied();
    Ok(match (function.module, function.name) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
            // The third version says the type of bytes that have none.
            let dtype = if function.name == "_rebuild_tensor_v3" { given.get(6).copied() } else { None };
            let [storage, offset, sizes, strides] = *given.first_chunk().ok_or_else(wrong)?;
            match view(pickle, storage, offset, sizes, strides, dtype).ok_or_else(wrong)? {
                Ok(view) => Value::Tensor(Box::new(view)),
                Err(why) => Value::Unreadable(why.to_string().into()),
            }
        }
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
        | ("torch.jit._pickle", "restore_type_tag") => {
            pickle.get(first.ok_or_else(wrong)?).clone_small().ok_or_else(wrong)?
        }
        ("torch._tensor", "_rebuild_from_type_v2") => {
            let [inner, class, args] = *given.first_chunk().ok_or_else(wrong)?;
            match (pickle.get(inner), pickle.get(class)) {
                (&Value::Global(inner), &Value::Global(class)) if is_plain_tensor(class) && is_rebuild(inner) => {
                    call(pickle, inner, args)?
                }
                (_, &Value::Global(class)) => Value::Skipped(class),
                _ => return Err(wrong()),
            }
        }
        ("collections", "OrderedDict") => match first.map(|id| pickle.get(id)) {
            None => Value::Dict(vec![]),
            // Before protocol 2: a list of pairs.
            Some(Value::List(pairs)) => {
                let pairs: Option<Vec<_>> = pairs
                    .iter()
                    .map(|&pair| pickle.items(pair).and_then(<[Id]>::first_chunk).map(|&[k, v]| (k, v)))
                    .collect();
                Value::Dict(pairs.ok_or_else(wrong)?)
            }
            Some(_) => return Err(wrong()),
        },
        ("torch", "Size")
        | ("torch.jit._pickle", "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist") => {
            pickle.get(first.ok_or_else(wrong)?).clone_small().ok_or_else(wrong)?
        }
        // NumPy's numbers, such as the best loss: dtype("f8", ..) is kept as its text, bytes as they are.
        ("numpy", "dtype") => match pickle.get(first.ok_or_else(wrong)?) {
            &Value::Text(name) => Value::Text(name),
            _ => Value::Skipped(function),
        },
        ("_codecs", "encode") => pickle.get(first.ok_or_else(wrong)?).clone_small().unwrap_or(Value::Skipped(function)),
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => {
            number(pickle, given).unwrap_or(Value::Skipped(function))
        }
        _ => unknown(function)?,
    })
}

/// A new object of a class.
///
/// # Errors
/// If it is a class that only an attack makes.
pub(super) fn new(class: Global<'_>) -> Result<Value<'_>> {
    Ok(match (class.module, class.name) {
        ("collections", "OrderedDict") => Value::Dict(vec![]),
        (module, _) if module == "__torch__" || module.starts_with("__torch__.") => {
            Value::Object { class, state: None }
        }
        _ => unknown(class)?,
    })
}

/// What is not in the list is skipped, by name; what gives control of the machine that unpickles it is not even that.
fn unknown(function: Global<'_>) -> Result<Value<'_>> {
    const SYSTEM: [&str; 19] = [
        "os",
        "posix",
        "nt",
        "subprocess",
        "sys",
        "shutil",
        "socket",
        "runpy",
        "importlib",
        "pty",
        "commands",
        "ctypes",
        "webbrowser",
        "code",
        "pickle",
        "_pickle",
        "marshal",
        "builtins",
        "__builtin__",
    ];
    // getattr is how enumerations are pickled; calling what it finds is refused.
    const HARMLESS: [&str; 14] = [
        "getattr",
        "set",
        "frozenset",
        "dict",
        "list",
        "tuple",
        "bytearray",
        "bytes",
        "complex",
        "slice",
        "range",
        "object",
        "int",
        "float",
    ];
    let outermost = function.module.split('.').next().unwrap_or_default();
    let builtin = matches!(function.module, "builtins" | "__builtin__");
    if SYSTEM.contains(&outermost) && !(builtin && HARMLESS.contains(&function.name)) {
        return Err(Error::new(format!(
            "refused: it calls {function}, which no weights need and which would run on the machine that loads it with torch; \
             do not open it there, and fetch the weights from a source that you trust"
        )));
    }
    Ok(Value::Skipped(function))
}

fn is_plain_tensor(class: Global<'_>) -> bool {
    matches!(
        (class.module, class.name),
        ("torch", "Tensor")
            | ("torch._tensor", "Tensor")
            | ("torch.nn.parameter", "Parameter" | "Buffer" | "UninitializedParameter")
    )
}

fn is_rebuild(function: Global<'_>) -> bool {
    function.module == "torch._utils"
        && matches!(
            function.name,
            "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3" | "_rebuild_parameter"
        )
}

impl<'a> Value<'a> {
    /// A copy, unless it could be large.
    fn clone_small(&self) -> Option<Value<'a>> {
        match self {
            Value::Dict(_) => None,
            Value::Tuple(items) | Value::List(items) if items.len() > 1024 => None,
            Value::Unreadable(why) if why.len() > 1024 => None,
            other => Some(other.clone()),
        }
    }
}

/// The storage that a persistent id names: ("storage", class, key, device, elements, and in legacy files perhaps a view).
pub(super) fn persistent<'a>(pickle: &mut Pickle<'a>, id: Id) -> Result<Value<'a>> {
    let wrong = || Error::new("an outside object that is no storage of torch.save; the file is damaged");
    let items = pickle.items(id).ok_or_else(wrong)?;
    let kind = items.first().map(|&kind| pickle.get(kind));
    if matches!(kind, Some(Value::Text("module"))) {
        // A class with its source, of a module that was saved whole.
        return items.get(1).and_then(|&class| pickle.get(class).clone_small()).ok_or_else(wrong);
    }
    let [kind, class, key, _, numel] = *items.first_chunk().ok_or_else(wrong)?;
    let (&Value::Text("storage"), &Value::Global(class), &Value::Int(numel)) =
        (pickle.get(kind), pickle.get(class), pickle.get(numel))
    else {
        return Err(wrong());
    };
    let offset = match items.get(5).map(|&view| pickle.get(view)) {
        None | Some(Value::None) => 0,
        Some(Value::Tuple(view)) => match view.first_chunk().map(|&[_, offset, _]| pickle.get(offset)) {
            Some(&Value::Int(offset)) => u64::try_from(offset).map_err(|_| wrong())?,
            _ => return Err(wrong()),
        },
        Some(_) => return Err(wrong()),
    };
    // A view's size is that of the view, not of what it is a view of.
    let numel = match items.get(5).and_then(|&view| pickle.items(view)).and_then(<[Id]>::first_chunk) {
        Some(&[_, _, size]) => match pickle.get(size) {
            Value::Int(size) => *size,
            _ => return Err(wrong()),
        },
        None => numel,
    };
    let key = match pickle.get(key) {
        Value::Text(key) if key.len() <= 64 => (*key).to_owned(),
        Value::Int(key) => key.to_string(),
        _ => return Err(wrong()),
    };
    let element = element(class).ok_or_else(|| Error::new(format!("a storage of the unknown type {class}")))?;
    let numel = u64::try_from(numel).map_err(|_| wrong())?;
    Ok(Value::Storage(pickle.storage(StorageKey { key, element, numel, offset })?))
}

fn element(class: Global<'_>) -> Option<Stored> {
    if !matches!(class.module, "torch" | "torch.cuda" | "torch.storage") {
        return None;
    }
    Some(match class.name {
        "FloatStorage" => Stored::Known(DType::F32),
        "DoubleStorage" => Stored::Known(DType::F64),
        "HalfStorage" => Stored::Known(DType::F16),
        "BFloat16Storage" => Stored::Known(DType::BF16),
        "LongStorage" => Stored::Known(DType::I64),
        "IntStorage" => Stored::Known(DType::I32),
        "ByteStorage" | "BoolStorage" => Stored::Known(DType::U8),
        "CharStorage" => Stored::Known(DType::I8),
        "UntypedStorage" | "_UntypedStorage" => Stored::Untyped,
        "ShortStorage" => Stored::Other("int16", 2),
        "ComplexFloatStorage" => Stored::Other("complex64", 8),
        "ComplexDoubleStorage" => Stored::Other("complex128", 16),
        "QInt8Storage" => Stored::Other("qint8", 1),
        "QUInt8Storage" => Stored::Other("quint8", 1),
        "QInt32Storage" => Stored::Other("qint32", 4),
        "QUInt4x2Storage" => Stored::Other("quint4x2", 1),
        "QUInt2x4Storage" => Stored::Other("quint2x4", 1),
        _ => return None,
    })
}

/// `torch.float32` and so on.
fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "float32" => DType::F32,
        "float64" => DType::F64,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        "int64" => DType::I64,
        "int32" => DType::I32,
        "uint8" | "bool" => DType::U8,
        "int8" => DType::I8,
        _ => return None,
    })
}

/// A view of a storage; nothing where the arguments have the wrong types, and the reason where they describe no readable tensor.
fn view(pickle: &Pickle, storage: Id, offset: Id, sizes: Id, strides: Id, given: Option<Id>) -> Option<Result<View>> {
    let &Value::Storage(storage) = pickle.get(storage) else { return None };
    let &Value::Int(offset) = pickle.get(offset) else { return None };
    let key = pickle.storages().get(storage)?;
    let integers = |id: Id| -> Option<Vec<i64>> {
        let items = pickle.items(id)?;
        // More are refused below; a long list is not worth copying.
        items.iter().take(64).map(|&i| if let &Value::Int(n) = pickle.get(i) { Some(n) } else { None }).collect()
    };
    let (sizes, strides) = (integers(sizes)?, integers(strides)?);
    let given = match given.map(|id| pickle.get(id)) {
        None => None,
        Some(&Value::Global(global)) => Some(global.name),
        Some(_) => return None,
    };
    let dtype = match (key.element, given) {
        (Stored::Known(dtype), None) => Ok(dtype),
        (Stored::Other(name, _), None) => Err(name),
        (Stored::Untyped, None) => Err("untyped"),
        (_, Some(name)) => dtype(name).ok_or(name),
    };
    let dtype = match dtype {
        Ok(dtype) => dtype,
        Err(name) => {
            let name = name.escape_debug();
            return Some(Err(Error::new(format!("has elements of torch.{name}, which this program does not read"))));
        }
    };
    let available = key.numel.saturating_mul(key.element.size() as u64) / dtype.size() as u64;
    Some(layout(offset, &sizes, &strides, available).map(|layout| View { storage, dtype, layout }))
}

/// A layout inside a storage of `available` elements.
fn layout(offset: i64, sizes: &[i64], strides: &[i64], available: u64) -> Result<Layout> {
    let shown = || format!("sizes {sizes:?}, strides {strides:?} and offset {offset}");
    let natural = |what: &[i64]| -> Result<Vec<u64>> {
        let negative = |_| Error::new(format!("has a negative one among {}; the file is damaged", shown()));
        what.iter().map(|&n| u64::try_from(n)).collect::<Result<_, _>>().map_err(negative)
    };
    if sizes.len() != strides.len() {
        return Err(Error::new(format!("has {}; the file is damaged", shown())));
    }
    let dims: Dims = weights::dims(&natural(sizes)?)?;
    let (offset, strides) = (natural(&[offset])?[0], natural(strides)?);
    if dims.numel() == 0 {
        return Ok(Layout::contiguous(dims, 0));
    }
    let reach = dims.iter().zip(&strides).try_fold(offset, |at, (&d, &s)| s.checked_mul(d as u64 - 1)?.checked_add(at));
    if reach.is_none_or(|last| last >= available) {
        return Err(Error::new(format!(
            "has {}, which reaches beyond its storage of {available} elements; the file is damaged",
            shown()
        )));
    }
    if dims.numel() as u64 > available.max(MAX_EXPANDED as u64) {
        return Err(Error::new(format!("has {}: {available} elements, repeated too often", shown())));
    }
    let contiguous = Layout::contiguous(dims, 0);
    // The stride of a single element means nothing and may be anything.
    let strides: Vec<isize> =
        (0..dims.len()).map(|k| if dims[k] == 1 { contiguous.strides()[k] } else { strides[k] as isize }).collect();
    Ok(Layout::strided(dims, &strides, offset as usize))
}

/// A NumPy number from its type and bytes (before protocol 3 as a text of the characters below 256).
fn number<'a>(pickle: &Pickle<'a>, given: &[Id]) -> Option<Value<'a>> {
    let &[dtype, bytes] = given.first_chunk()?;
    let &Value::Text(dtype) = pickle.get(dtype) else { return None };
    let mut raw = [0; 8];
    let len = match pickle.get(bytes) {
        Value::Bytes(bytes) => {
            raw.get_mut(..bytes.len())?.copy_from_slice(bytes);
            bytes.len()
        }
        Value::Text(text) => {
            let mut len = 0;
            for c in text.chars() {
                *raw.get_mut(len)? = u8::try_from(c).ok()?;
                len += 1;
            }
            len
        }
        _ => return None,
    };
    let bits = u64::from_le_bytes(raw);
    Some(match (dtype.trim_start_matches('<'), len) {
        ("f8", 8) => Value::Float(f64::from_bits(bits)),
        ("f4", 4) => Value::Float(f64::from(f32::from_bits(bits as u32))),
        ("i8", 8) => Value::Int(bits as i64),
        ("i4", 4) => Value::Int(i64::from(bits as u32 as i32)),
        ("b1", 1) => Value::Bool(bits != 0),
        _ => return None,
    })
}
