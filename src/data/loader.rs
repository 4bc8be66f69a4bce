//! Batches of pixels: drawn, decoded, resized, augmented and normalised ahead of their use, the same however many workers do it.
//!
//! Workers are no threads of their own: a picture is a task of the threads that compute (`kernels_cpu::par`), which take one when they have nothing
//! else to do. So a process keeps to its number of threads, and whoever waits for a batch helps to make it.

mod epoch;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::image::{self, Augment, Picture, Preprocess, SixteenBit};
use crate::rng::Rng;
use crate::tensor::Tensor;
pub use epoch::Epoch;
use epoch::Made;
pub(crate) use epoch::held;

/// How pictures become batches.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Images in a batch.
    pub batch: usize,
    /// Decides order and augmentation.
    pub seed: u64,
    /// Another order in every epoch; else the order given.
    pub shuffle: bool,
    /// Leaves out a last batch that is not full.
    pub drop_last: bool,
    /// Random views of each image; [`None`]: one view, as evaluation sees it.
    pub augment: Option<Augment>,
    /// Views of each image, up to 256; without `augment` they are equal.
    pub views: usize,
    /// The model's preprocessing.
    pub preprocess: Preprocess,
    /// How 16-bit levels become 8-bit ones.
    pub sixteen_bit: SixteenBit,
    /// Pictures that are made at once ahead of their use; 0: all work is done where the batch is asked for.
    pub workers: usize,
    /// Memory for decoded and resized pictures, which later epochs then need not decode again, in MiB.
    pub cache_mib: usize,
    /// Notes on a picture say too what is doubtful about it: see [`image::doubts`].
    pub doubts: bool,
    /// Leaves files that cannot be read out of their batches, which tell of them, instead of ending the epoch.
    pub skip_broken: bool,
}

impl LoaderOptions {
    /// Batches in the order given, as evaluation wants them: one view, nothing random, nothing left out, nothing kept.
    pub fn evaluation(preprocess: Preprocess, batch: usize, workers: usize) -> Self {
        Self {
            batch,
            seed: 0,
            shuffle: false,
            drop_last: false,
            augment: None,
            views: 1,
            preprocess,
            sixteen_bit: SixteenBit::default(),
            workers,
            cache_mib: 0,
            doubts: false,
            skip_broken: false,
        }
    }
}

/// Some images of an epoch; with `skip_broken` there may be none.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Which images: positions in the paths that the loader was given.
    pub rows: Vec<usize>,
    /// Per view, f32 `[n, channels, crop, crop]`, normalised.
    pub views: Vec<Tensor>,
    /// Per image, what a user should know of its file and how it was read, one line each; nothing of one kept from an earlier epoch.
    pub notes: Vec<Vec<String>>,
    /// The files that were left out, and why, one line each.
    pub broken: Vec<String>,
}

/// Makes batches of a list of image files. Order and pixels depend on the options' seed, the epoch and the image alone.
pub struct Loader {
    shared: Arc<Shared>,
}

/// What workers need.
struct Shared {
    paths: Vec<PathBuf>,
    options: LoaderOptions,
    /// Per image, its place in the cache: several rows may name one file.
    slots: Vec<usize>,
    cache: Vec<OnceLock<Picture>>,
    cached_bytes: AtomicUsize,
}

/// Keeps this room's random numbers apart from others with the same seed.
const LOADER_KEY: u64 = u64::from_be_bytes(*b"loader\0\0");
/// The image number that stands for the order of all.
const ORDER: u64 = u32::MAX as u64;

/// Views that have random numbers of their own.
pub const MAX_VIEWS: usize = 1 << 8;
/// Epochs likewise.
pub const MAX_EPOCHS: u64 = 1 << 24;

/// The random numbers of one view of one image in one epoch; no two share any.
fn stream(seed: u64, epoch: u64, image: u64, view: u64) -> Rng {
    Rng::new(seed ^ LOADER_KEY, (epoch << 40) | (image << 8) | view)
}

impl Loader {
    /// A loader of the given files, none of which is opened yet.
    ///
    /// # Errors
    /// If an option cannot be used.
    pub fn new(paths: Vec<PathBuf>, options: LoaderOptions) -> Result<Self> {
        options.preprocess.validate()?;
        options.augment.as_ref().map_or(Ok(()), Augment::validate)?;
        if options.batch == 0 || !(1..=MAX_VIEWS).contains(&options.views) {
            let (batch, views) = (options.batch, options.views);
            return Err(Error::usage(format!(
                "batch {batch}, views {views}: give a batch of 1 or more and 1 to {MAX_VIEWS} views"
            )));
        }
        if options.drop_last && paths.len() < options.batch {
            let (all, batch) = (paths.len(), options.batch);
            return Err(Error::new(format!("{all} images do not fill a batch of {batch}; lower the batch size")));
        }
        if paths.len() as u64 >= ORDER {
            return Err(Error::new(format!("{} images are more than one loader can number; split them", paths.len())));
        }
        let mut known = HashMap::new();
        let slots: Vec<usize> = paths
            .iter()
            .map(|path| {
                let next = known.len();
                *known.entry(path).or_insert(next)
            })
            .collect();
        let cache = known.iter().map(|_| OnceLock::new()).collect();
        let cached_bytes = AtomicUsize::new(0);
        Ok(Self { shared: Arc::new(Shared { paths, options, slots, cache, cached_bytes }) })
    }

    /// Batches in an epoch.
    pub fn batches(&self) -> usize {
        let (images, batch) = (self.shared.paths.len(), self.shared.options.batch);
        if self.shared.options.drop_last { images / batch } else { images.div_ceil(batch) }
    }

    /// The options.
    pub fn options(&self) -> &LoaderOptions {
        &self.shared.options
    }

    /// Bytes of pictures that are kept.
    pub fn cached_bytes(&self) -> usize {
        self.shared.cached_bytes.load(Ordering::Relaxed)
    }

    /// The batches of epoch `epoch` from number `from_batch` on: what a run that is resumed has not seen.
    ///
    /// Workers make the batch after the one that is in use. After an error there are no more batches.
    pub fn epoch(&self, epoch: u64, from_batch: usize) -> Epoch {
        let shared = &self.shared;
        let mut order: Vec<usize> = (0..shared.paths.len()).collect();
        if shared.options.shuffle {
            stream(shared.options.seed, epoch, ORDER, 0).shuffle(&mut order);
        }
        Epoch::new(shared.clone(), epoch, order, from_batch, self.batches())
    }
}

impl Shared {
    /// What augmentation starts from, or what evaluation sees; from the cache where it is there. Also gives the notes on its file.
    fn with_picture(&self, image: usize, then: impl FnOnce(&Picture)) -> Result<Vec<String>> {
        let slot = &self.cache[self.slots[image]];
        if let Some(picture) = slot.get() {
            then(picture);
            return Ok(Vec::new());
        }
        let (source, mut notes) = image::open_with_notes(&self.paths[image], self.options.sixteen_bit)?;
        if self.options.doubts {
            notes.extend(image::doubts(&source));
        }
        let preprocess = &self.options.preprocess;
        let source = if preprocess.channels == 1 { source.grey().into_owned() } else { source };
        let picture = match self.options.augment {
            Some(_) => preprocess.resized(&source).into_owned(),
            None => preprocess.seen(&source),
        };
        let limit = self.options.cache_mib << 20;
        let bytes = picture.pixels.len();
        if self.cached_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > limit {
            self.cached_bytes.fetch_sub(bytes, Ordering::Relaxed);
            then(&picture);
            return Ok(notes);
        }
        then(&picture);
        if slot.set(picture).is_err() {
            // Another worker was faster with the same file.
            self.cached_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(notes)
    }

    /// The views of one image in one epoch, f32 [channels, crop, crop] each, and the notes on its file.
    fn views(&self, epoch: u64, image: usize) -> Result<Made> {
        let LoaderOptions { preprocess, views, augment, seed, .. } = &self.options;
        let mut made = Vec::with_capacity(*views);
        let notes = self.with_picture(image, |picture| {
            made.extend((0..*views).map(|view| match augment {
                Some(augment) => {
                    augment.view(picture, preprocess, &mut stream(*seed, epoch, image as u64, view as u64))
                }
                None => preprocess.normalise(picture),
            }));
        })?;
        Ok((made, notes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Preset;

    fn preprocess() -> Preprocess {
        Preprocess { resize: 12, crop: 10, channels: 1, mean: vec![0.5], std: vec![0.2], ..Preset::Tier.preprocess() }
    }

    fn training(workers: usize) -> LoaderOptions {
        LoaderOptions {
            seed: 7,
            shuffle: true,
            drop_last: true,
            augment: Some(Augment::default()),
            views: 2,
            cache_mib: 1,
            ..LoaderOptions::evaluation(preprocess(), 4, workers)
        }
    }

    /// A folder with `n` different pictures.
    fn pictures(n: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..n).map(|i| folder.path().join(format!("{i}.png"))).collect();
        for (i, path) in paths.iter().enumerate() {
            let mut rng = Rng::new(1, i as u64);
            let (width, height) = (12 + i % 5, 14 + i % 3);
            let pixels = (0..width * height).map(|_| rng.next_u32() as u8).collect();
            Picture::new(width, height, 1, pixels).save_png(path).unwrap();
        }
        (folder, paths)
    }

    fn bits(batch: Batch) -> (Vec<usize>, Vec<Vec<u32>>) {
        let of = |view: &Tensor| view.to_vec::<f32>().iter().map(|x| x.to_bits()).collect();
        (batch.rows, batch.views.iter().map(of).collect())
    }

    fn all(loader: &Loader, epoch: u64, from: usize) -> Vec<(Vec<usize>, Vec<Vec<u32>>)> {
        loader.epoch(epoch, from).map(|batch| bits(batch.unwrap())).collect()
    }

    #[test]
    fn batches_do_not_depend_on_workers_cache_or_where_one_starts() {
        let (_folder, paths) = pictures(23);
        let alone = Loader::new(paths.clone(), LoaderOptions { cache_mib: 0, ..training(0) }).unwrap();
        let expected = [all(&alone, 0, 0), all(&alone, 1, 0)];
        assert_eq!((expected[0].len(), alone.cached_bytes()), (5, 0));
        assert_ne!(expected[0], expected[1]);
        for workers in [1, 2, 5] {
            let loader = Loader::new(paths.clone(), training(workers)).unwrap();
            for epoch in [0, 1, 0] {
                assert_eq!(all(&loader, epoch, 0), expected[epoch as usize], "{workers} workers, epoch {epoch}");
            }
            assert!(loader.cached_bytes() > 0);
            assert_eq!(all(&loader, 1, 3), expected[1][3..]);
            assert_eq!(all(&loader, 1, 5), []);
        }
        let views = &expected[0][0].1;
        assert_ne!(views[0], views[1]);
        assert_eq!(views[0].len(), 4 * 100);
    }

    #[test]
    fn an_epoch_has_every_image_once_in_an_order_of_its_own() {
        let (_folder, paths) = pictures(9);
        let loader = Loader::new(paths, LoaderOptions { drop_last: false, ..training(2) }).unwrap();
        let rows = |epoch| all(&loader, epoch, 0).into_iter().flat_map(|(rows, _)| rows).collect::<Vec<_>>();
        let (first, second) = (rows(0), rows(1));
        assert_ne!(first, second);
        for mut order in [first, second] {
            order.sort();
            assert_eq!(order, (0..9).collect::<Vec<_>>());
        }
    }

    #[test]
    fn evaluation_keeps_order_and_pixels() {
        let (_folder, mut paths) = pictures(5);
        paths.push(paths[1].clone());
        let options = LoaderOptions { cache_mib: 1, ..LoaderOptions::evaluation(preprocess(), 4, 2) };
        let loader = Loader::new(paths.clone(), options).unwrap();
        for _ in 0..2 {
            let batches: Vec<_> = loader.epoch(0, 0).map(Result::unwrap).collect();
            assert_eq!(
                batches.iter().map(|batch| batch.rows.clone()).collect::<Vec<_>>(),
                [vec![0, 1, 2, 3], vec![4, 5]]
            );
            assert_eq!(batches[1].views[0].dims()[..], [2, 1, 10, 10]);
            for (i, path) in paths.iter().enumerate() {
                let expected = preprocess().apply(&image::open(path, SixteenBit::HighByte).unwrap());
                let seen = batches[i / 4].views[0].to_vec::<f32>();
                assert_eq!(seen[i % 4 * 100..][..100], expected, "image {i}");
            }
        }
        assert_eq!(loader.cached_bytes(), 5 * 100);
    }

    #[test]
    fn the_cache_keeps_to_its_limit() {
        let (_folder, paths) = pictures(6);
        // The pictures are about 12 by 14 levels; at 12 by 100 000 two would fill a MiB.
        let options = LoaderOptions { preprocess: Preprocess { resize: 700, crop: 8, ..preprocess() }, ..training(2) };
        let loader = Loader::new(paths, options).unwrap();
        assert_eq!(all(&loader, 0, 0), all(&loader, 0, 0));
        assert!((1 << 19..=1 << 20).contains(&loader.cached_bytes()), "{}", loader.cached_bytes());
    }

    #[test]
    fn a_lost_file_ends_the_epoch_with_its_name() {
        let (_folder, paths) = pictures(12);
        std::fs::remove_file(&paths[6]).unwrap();
        for workers in [0, 2] {
            let loader = Loader::new(paths.clone(), LoaderOptions::evaluation(preprocess(), 4, workers)).unwrap();
            let mut epoch = loader.epoch(0, 0);
            assert!(epoch.next().unwrap().is_ok());
            let error = epoch.next().unwrap().unwrap_err().to_string();
            assert!(error.contains("6.png"), "{error}");
            assert!(epoch.next().is_none());
        }
    }

    #[test]
    fn broken_files_can_be_left_out() {
        let (_folder, paths) = pictures(7);
        std::fs::remove_file(&paths[6]).unwrap();
        std::fs::write(&paths[1], b"\x89PNG\r\n\x1a\n").unwrap();
        for workers in [0, 2] {
            let options = LoaderOptions { skip_broken: true, ..LoaderOptions::evaluation(preprocess(), 3, workers) };
            let batches: Vec<Batch> =
                Loader::new(paths.clone(), options).unwrap().epoch(0, 0).map(Result::unwrap).collect();
            let rows: Vec<_> = batches.iter().map(|batch| batch.rows.clone()).collect();
            assert_eq!(rows, [vec![0, 2], vec![3, 4, 5], vec![]]);
            assert_eq!(batches[0].views[0].dims()[..], [2, 1, 10, 10]);
            let third = preprocess().apply(&image::open(&paths[2], SixteenBit::HighByte).unwrap());
            assert_eq!(batches[0].views[0].to_vec::<f32>()[100..], third);
            assert!(batches[0].broken[0].contains("1.png") && batches[2].broken[0].contains("6.png"));
            assert_eq!(batches.iter().map(|batch| batch.broken.len()).collect::<Vec<_>>(), [1, 0, 1]);
        }
    }

    #[test]
    fn dropping_an_epoch_stops_its_workers_and_the_queue_is_bounded() {
        let (_folder, paths) = pictures(8);
        let many: Vec<_> = (0..400).map(|i| paths[i % 8].clone()).collect();
        let loader = Loader::new(many, LoaderOptions { batch: 4, ..training(3) }).unwrap();
        let mut epoch = loader.epoch(0, 0);
        epoch.next().unwrap().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let begun = epoch.0.lock().next;
        assert!((4..=8).contains(&begun), "{begun} pictures begun for 4 that were taken");
        let work = epoch.0.clone();
        drop(epoch);
        let begun = work.lock().next;
        std::thread::sleep(std::time::Duration::from_millis(10));
        let state = work.lock();
        assert_eq!((state.busy, state.next), (0, begun));
    }

    #[test]
    fn workers_are_the_threads_that_compute() {
        let (_folder, paths) = pictures(8);
        let many: Vec<_> = (0..64).map(|i| paths[i % 8].clone()).collect();
        // One thread that computes: nobody else may make a picture, and waiting for one must not stop it.
        let pool = kernels_cpu::par::Pool::new(1);
        let rows = pool.install(|| {
            let loader = Loader::new(many, LoaderOptions { batch: 8, drop_last: false, ..training(3) }).unwrap();
            let mut epoch = loader.epoch(0, 0);
            let first = epoch.next().unwrap().unwrap().rows.len();
            std::thread::sleep(std::time::Duration::from_millis(10));
            assert_eq!(epoch.0.lock().next, 8, "a picture was made while the only thread slept");
            first + epoch.map(|batch| batch.unwrap().rows.len()).sum::<usize>()
        });
        assert_eq!(rows, 64);
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let error = |options| Loader::new(vec![PathBuf::new(); 3], options).err().unwrap().to_string();
        assert!(error(training(0)).contains("3 images do not fill a batch of 4"));
        assert!(error(LoaderOptions { batch: 0, ..training(0) }).contains("batch 0"));
        assert!(error(LoaderOptions { views: 257, ..training(0) }).contains("257"));
        let augment = Augment { noise: -1.0, ..Augment::off() };
        assert!(error(LoaderOptions { augment: Some(augment), ..training(0) }).contains("augment.noise"));
    }
}
