//! What is kept between runs for a device and its driver: compiled kernels, and verdicts on cooperative matrices.

use std::fmt;
use std::sync::Arc;

use kernels_cpu::hash::fnv;

use crate::select::Info;

/// Where it is kept, under names of letters, digits and dashes. What cannot be read or written is made again.
pub trait Keep: fmt::Debug + Send + Sync {
    /// What was written last.
    fn read(&self, name: &str) -> Option<Vec<u8>>;
    /// Replaces it: whoever reads sees what was there before or all of `bytes`.
    fn write(&self, name: &str, bytes: &[u8]);
}

#[derive(Clone)]
pub(crate) struct Cache {
    kept: Option<Arc<dyn Keep>>,
    /// Device and driver.
    of: String,
}

impl Cache {
    pub fn new(kept: Option<Arc<dyn Keep>>, info: &Info) -> Self {
        let driver = fnv(format!("{} {}", info.driver, info.build).as_bytes());
        Self { kept, of: format!("{}-{driver:016x}", info.uuid) }
    }

    /// What was written of this sort, if it is as it was written: not every driver survives a cache that is not.
    pub fn read(&self, what: &str) -> Option<Vec<u8>> {
        let mut bytes = self.kept.as_ref()?.read(&self.name(what))?;
        let sum = bytes.split_off(bytes.len().checked_sub(8)?);
        (fnv(&bytes).to_le_bytes()[..] == sum[..]).then_some(bytes)
    }

    pub fn write(&self, what: &str, bytes: &[u8]) {
        if let Some(kept) = &self.kept {
            kept.write(&self.name(what), &[bytes, &fnv(bytes).to_le_bytes()].concat());
        }
    }

    fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Memory(Mutex<HashMap<String, Vec<u8>>>);

    impl Keep for Memory {
        fn read(&self, name: &str) -> Option<Vec<u8>> {
            self.0.lock().unwrap().get(name).cloned()
        }
        fn write(&self, name: &str, bytes: &[u8]) {
            self.0.lock().unwrap().insert(name.to_owned(), bytes.to_vec());
        }
    }

    #[test]
    fn a_damaged_cache_is_none() {
        let memory = Arc::new(Memory::default());
        let cache = Cache { kept: Some(memory.clone()), of: "device".to_owned() };
        assert_eq!(cache.read("kernels"), None);
        cache.write("kernels", b"compiled");
        assert_eq!(cache.read("kernels").as_deref(), Some(&b"compiled"[..]));
        assert_eq!(cache.read("verdicts"), None);
        let written = memory.read("kernels-device").unwrap();
        for at in 0..written.len() {
            let mut damaged = written.clone();
            damaged[at] ^= 4;
            memory.write("kernels-device", &damaged);
            assert_eq!(cache.read("kernels"), None);
            memory.write("kernels-device", &written[..at]);
            assert_eq!(cache.read("kernels"), None);
        }
        let none = Cache { kept: None, of: String::new() };
        none.write("kernels", b"compiled");
        assert_eq!(none.read("kernels"), None);
    }
}
