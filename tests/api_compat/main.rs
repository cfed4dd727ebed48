//! Compile-time conformance check for a `sled` 0.34.7 replacement (written for this project).
//! Builds against the original crate; must also build, warning-free on API use, against the replacement.
#![allow(dead_code, unused_variables, deprecated, clippy::all, clippy::unwrap_used)]
use sled::transaction::{
    abort, ConflictableTransactionError, ConflictableTransactionResult, TransactionError, TransactionResult,
    TransactionalTree, TransactionalTrees, UnabortableTransactionError,
};
use sled::{Batch, CompareAndSwapError, Config, Db, Error, Event, IVec, Iter, MergeOperator, Mode, Subscriber, Transactional, Tree};
use std::borrow::Borrow;
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::time::Duration;

fn send<T: Send + ?Sized>() {}
fn sync<T: Sync + ?Sized>() {}
fn unpin<T: Unpin>() {}
fn clone<T: Clone>() {}
fn debug<T: Debug>() {}
fn display<T: Display>() {}
fn default<T: Default>() {}
fn eq<T: Eq>() {}
fn ord<T: Ord>() {}
fn hash<T: Hash>() {}
fn copy<T: Copy>() {}
fn err<T: std::error::Error + 'static>() {}
fn unwind<T: std::panic::UnwindSafe + std::panic::RefUnwindSafe>() {}
fn from<A, B: From<A>>() {}
fn peq<A: PartialEq<B> + ?Sized, B: ?Sized>() {}
fn is_send<T: Send>(_: &T) {}
fn is_send_sync<T: Send + Sync>(_: &T) {}
fn is_static<T: 'static>(_: &T) {}

fn traits() {
    // auto traits
    send::<Db>(); sync::<Db>(); send::<Tree>(); sync::<Tree>(); send::<Iter>(); sync::<Iter>();
    send::<IVec>(); sync::<IVec>(); send::<Batch>(); sync::<Batch>(); send::<Config>(); sync::<Config>();
    send::<Error>(); sync::<Error>(); send::<Event>(); sync::<Event>(); send::<Mode>(); sync::<Mode>();
    send::<CompareAndSwapError>(); sync::<CompareAndSwapError>();
    send::<Subscriber>(); unpin::<Subscriber>(); unpin::<Iter>(); unpin::<Tree>(); unpin::<Db>();
    send::<UnabortableTransactionError>(); sync::<UnabortableTransactionError>();
    send::<ConflictableTransactionError<u8>>(); sync::<TransactionError<u8>>();
    unwind::<IVec>(); unwind::<Batch>(); unwind::<Event>(); unwind::<Mode>(); unwind::<CompareAndSwapError>();
    // std traits
    clone::<Db>(); clone::<Tree>(); clone::<Config>(); clone::<Batch>(); clone::<IVec>(); clone::<Event>(); clone::<Error>();
    clone::<CompareAndSwapError>(); clone::<Mode>(); clone::<TransactionalTree>(); clone::<UnabortableTransactionError>();
    clone::<ConflictableTransactionError<u8>>(); clone::<TransactionError<u8>>();
    copy::<Mode>();
    debug::<Db>(); debug::<Tree>(); debug::<Config>(); debug::<Batch>(); debug::<IVec>(); debug::<Event>(); debug::<Error>();
    debug::<CompareAndSwapError>(); debug::<Mode>(); debug::<UnabortableTransactionError>();
    debug::<ConflictableTransactionError<u8>>(); debug::<TransactionError<u8>>();
    default::<Config>(); default::<Batch>(); default::<IVec>();
    eq::<IVec>(); eq::<Event>(); eq::<Error>(); eq::<CompareAndSwapError>();
    ord::<IVec>(); ord::<Event>(); ord::<CompareAndSwapError>();
    hash::<IVec>(); hash::<CompareAndSwapError>();
    peq::<UnabortableTransactionError, UnabortableTransactionError>();
    peq::<ConflictableTransactionError<u8>, ConflictableTransactionError<u8>>();
    peq::<TransactionError<u8>, TransactionError<u8>>();
    peq::<IVec, [u8]>(); peq::<IVec, Vec<u8>>(); peq::<IVec, &[u8]>(); peq::<IVec, [u8; 3]>(); peq::<IVec, &[u8; 3]>();
    peq::<IVec, &str>(); peq::<IVec, String>(); peq::<IVec, IVec>(); peq::<IVec, &IVec>();
    display::<Error>(); display::<CompareAndSwapError>(); display::<UnabortableTransactionError>();
    display::<ConflictableTransactionError<String>>(); display::<TransactionError<String>>();
    err::<Error>(); err::<CompareAndSwapError>(); err::<UnabortableTransactionError>();
    err::<ConflictableTransactionError<std::io::Error>>(); err::<TransactionError<std::io::Error>>();
    err::<ConflictableTransactionError>(); err::<TransactionError>(); // default type parameter is sled::Error
    from::<std::io::Error, Error>(); from::<Error, std::io::Error>();
    from::<Error, UnabortableTransactionError>(); from::<Error, ConflictableTransactionError<u8>>();
    from::<Error, TransactionError<u8>>(); from::<UnabortableTransactionError, ConflictableTransactionError<u8>>();
    from::<Error, sled::Result<Result<(), CompareAndSwapError>>>();
    from::<&[u8], IVec>(); from::<&str, IVec>(); from::<Vec<u8>, IVec>(); from::<Box<[u8]>, IVec>(); from::<&IVec, IVec>();
    from::<&[u8; 0], IVec>(); from::<&[u8; 1], IVec>(); from::<&[u8; 32], IVec>();
    fn b<T: Borrow<[u8]> + AsRef<[u8]> + AsMut<[u8]> + DerefMut<Target = [u8]> + std::iter::FromIterator<u8>>() {}
    b::<IVec>();
    fn b2<T: Borrow<[u8]>>() {}
    b2::<&IVec>();
    fn d<T: Deref<Target = Tree>>() {}
    d::<Db>();
    fn it<T: DoubleEndedIterator<Item = sled::Result<(IVec, IVec)>>>() {}
    it::<Iter>();
    fn sub<T: Iterator<Item = Event> + Future<Output = Option<Event>>>() {}
    sub::<Subscriber>();
    fn into<'a, T: IntoIterator<Item = Result<(IVec, IVec), Error>, IntoIter = Iter>>() {}
    into::<&'static Tree>();
}

// A downstream crate may write these impls; the replacement must not add blanket impls that overlap.
struct MyErr;
impl From<MyErr> for ConflictableTransactionError<MyErr> { fn from(e: MyErr) -> Self { ConflictableTransactionError::Abort(e) } }
impl From<TransactionError<MyErr>> for MyErr { fn from(_: TransactionError<MyErr>) -> Self { MyErr } }
struct Wrapper(IVec);
impl From<Wrapper> for IVec { fn from(w: Wrapper) -> IVec { w.0 } }
impl PartialEq<IVec> for Wrapper { fn eq(&self, o: &IVec) -> bool { self.0 == *o } }

// exhaustive matches must stay exhaustive: no new variants, no #[non_exhaustive]
fn exhaustive(e: Error, ev: Event, m: Mode, t: TransactionError<u8>, u: UnabortableTransactionError, c: ConflictableTransactionError<u8>) {
    match e {
        Error::CollectionNotFound(name) => { let _: IVec = name; }
        Error::Unsupported(s) | Error::ReportableBug(s) => { let _: String = s; }
        Error::Io(e) => { let _: std::io::Error = e; }
        Error::Corruption { at, bt: () } => { let _ = at.is_some(); }
        #[cfg(feature = "failpoints")] Error::FailPoint => {}
    }
    match ev { Event::Insert { key, value } => { let _: (IVec, IVec) = (key, value); } Event::Remove { key } => { let _: IVec = key; } }
    match m { Mode::LowSpace | Mode::HighThroughput => {} }
    match t { TransactionError::Abort(x) => { let _: u8 = x; } TransactionError::Storage(e) => { let _: Error = e; } }
    match u { UnabortableTransactionError::Conflict => {} UnabortableTransactionError::Storage(e) => { let _: Error = e; } }
    match c { ConflictableTransactionError::Abort(_) => {} ConflictableTransactionError::Conflict => {} ConflictableTransactionError::Storage(_) => {} }
}

fn config() -> sled::Result<()> {
    let c: Config = Config::new().path("x").cache_capacity(1u64).mode(Mode::LowSpace).use_compression(false)
        .compression_factor(5i32).temporary(true).create_new(false).print_profile_on_drop(false);
    // hidden but used downstream
    let c: Config = Config::default().segment_size(1024usize).flush_every_ms(Some(5u64)).idgen_persist_interval(7u64)
        .segment_cleanup_skew(1).segment_cleanup_threshold(1u8).snapshot_after_ops(1u64).snapshot_path("whatever");
    let _: std::path::PathBuf = c.get_path();
    let _: sled::Result<()> = c.global_error();
    let _: (u64, Option<u64>, usize, bool, bool, bool, i32, bool, u64, (usize, usize)) = (c.cache_capacity, c.flush_every_ms, c.segment_size,
        c.create_new, c.temporary, c.use_compression, c.compression_factor, c.print_profile_on_drop, c.idgen_persist_interval, c.version);
    let _: (&std::path::PathBuf, Mode) = (&c.path, c.mode);
    let db: Db = c.open()?;
    let _: Db = sled::open(std::path::Path::new("x"))?;
    let _: Db = Db::open("x")?;
    let _: std::path::PathBuf = db.context.get_path();
    Ok(())
}

fn db_api(db: &Db) -> sled::Result<()> {
    let t: Tree = db.open_tree("name")?; let _: Tree = db.open_tree(b"name")?; let _: Tree = db.open_tree(vec![1u8])?;
    let _: bool = db.drop_tree("name")?; let _: Vec<IVec> = db.tree_names(); let _: bool = db.was_recovered();
    let _: u64 = db.generate_id()?; let _: u32 = db.checksum()?; let _: u64 = db.size_on_disk()?; let _: f64 = db.space_amplification()?;
    // the export value must not borrow from the Db
    let ex = { let tmp: Db = db.clone(); tmp.export() };
    is_static(&ex); is_send_sync(&ex);
    fn shape<I: Iterator<Item = Vec<Vec<u8>>>>(_: &Vec<(Vec<u8>, Vec<u8>, I)>) {}
    shape(&ex);
    db.import(ex);
    db.import(vec![(b"tree".to_vec(), b"n".to_vec(), vec![vec![b"k".to_vec(), b"v".to_vec()]].into_iter())]);
    Ok(())
}

fn tree_api(db: &Db, t: &Tree) -> sled::Result<()> {
    let _: Option<IVec> = t.insert("k", "v")?; t.insert(b"k", b"v")?; t.insert(vec![1u8], vec![1u8])?; t.insert([1u8, 2], &[1u8, 2])?;
    t.insert(IVec::from("k"), IVec::from("v"))?; t.insert(&IVec::from("k"), &IVec::from("v"))?; t.insert(String::from("k"), "v".as_bytes())?;
    t.insert(1u64.to_be_bytes(), &1u64.to_be_bytes())?; t.insert::<&str, &str>("k", "v")?;
    let _: Option<IVec> = t.get("k")?; t.get(b"k")?; t.get(&[0])?; t.get::<&[u8]>(&[0])?; let _: Option<IVec> = t.remove("k")?;
    t.set("k", "v")?; t.del("k")?; t.verify_integrity()?;
    let r: Result<Result<(), CompareAndSwapError>, Error> = t.compare_and_swap("k", Some("a"), Some("b"));
    let _ = t.compare_and_swap("k", None as Option<&[u8]>, Some(b"b"))?; let _ = t.compare_and_swap::<_, _, &[u8]>("k", Some("a"), None)?;
    let _: Option<IVec> = t.update_and_fetch("k", |o: Option<&[u8]>| o.map(|x| x.to_vec()))?;
    let _: Option<IVec> = t.fetch_and_update("k", |o: Option<&[u8]>| Some(IVec::from("x")))?;
    let mut n = 0; t.update_and_fetch(b"k", |_| { n += 1; Some("fnmut") })?;
    let s: Subscriber = t.watch_prefix("p"); is_static(&s);
    let mut s2 = s; let _: Result<Event, std::sync::mpsc::RecvTimeoutError> = s2.next_timeout(Duration::from_secs(0)); let _: Option<Event> = s2.next();
    let e: Event = Event::Remove { key: "k".into() }; let _: &IVec = e.key();
    let _: usize = t.flush()?; let f = t.flush_async(); is_send(&f); fn fut<F: Future<Output = sled::Result<usize>>>(_: &F) {} fut(&f);
    let _: bool = t.contains_key("k")?; let _: Option<(IVec, IVec)> = t.get_lt("k")?; let _: Option<(IVec, IVec)> = t.get_gt(vec![1u8])?;
    let _: Option<IVec> = t.merge("k", "v")?; let _: Option<IVec> = t.merge(b"k", vec![1u8])?;
    fn op(_k: &[u8], _o: Option<&[u8]>, _m: &[u8]) -> Option<Vec<u8>> { None }
    t.set_merge_operator(op); let rc = std::rc::Rc::new(1u8); // the bound is only `MergeOperator + 'static`: no Send/Sync required
    t.set_merge_operator(move |_k: &[u8], _o: Option<&[u8]>, m: &[u8]| { let _ = &rc; Some(m.to_vec()) });
    let b: Box<dyn MergeOperator> = Box::new(op);
    let i: Iter = t.iter(); is_static(&i); let i: Iter = t.range("a".."b"); let i: Iter = t.range::<&str, _>(..); let i = t.range::<Vec<u8>, _>(..);
    let i = t.range(vec![1u8]..=vec![2u8]); let i = t.range((Bound::Excluded(vec![1u8]), Bound::Unbounded)); let i = t.range(IVec::from("a")..); let lo: &[u8] = b"a"; let i = t.range(lo..);
    fn r#gen<K: AsRef<[u8]>, R: RangeBounds<K>>(t: &Tree, r: R) -> Iter { t.range(r) }
    let i: Iter = t.scan_prefix("p"); let i = t.scan_prefix(vec![1u8]); let i = t.scan_prefix([1u8]);
    let ks = t.iter().keys(); is_send_sync(&ks); is_static(&ks); let vs = t.iter().values().rev(); is_send_sync(&vs);
    let _: Option<(IVec, IVec)> = t.first()?; let _: Option<(IVec, IVec)> = t.last()?; let _: Option<(IVec, IVec)> = t.pop_max()?; let _ = t.pop_min()?;
    let _: usize = t.len(); let _: bool = t.is_empty(); t.clear()?; let _: IVec = t.name(); let _: u32 = t.checksum()?;
    for kv in t { let _: (IVec, IVec) = kv?; }
    for kv in &**db { let (_k, _v) = kv?; }
    let mut b = Batch::default(); b.insert("k", "v"); b.insert(b"k", vec![1u8]); b.remove("k"); b.insert(&IVec::from("k"), IVec::from("v")); t.apply_batch(b)?;
    assert_eq!(t.get("zz"), Ok(None)); assert!(t.get("k") != Err(Error::CollectionNotFound(b"1".into())));
    let v = t.get("k")?.unwrap(); let _ = (v == b"x", v == "x", v == vec![1u8], &v == b"x", v == *vec![1u8], [&v] == [b"x"], v < IVec::from("z"));
    Ok(())
}

fn ivec_api() {
    let mut v: IVec = IVec::from(vec![1, 2, 3]); let _: IVec = v.subslice(0, 1); v[0] = 1; v.as_mut()[0] = 2; let _: Vec<u8> = v.to_vec(); let _: IVec = (0u8..3).collect();
    let m: std::collections::HashMap<IVec, u8> = Default::default(); let _ = m.get(&b"x"[..]); let m: std::collections::BTreeMap<IVec, u8> = Default::default(); let _ = m.get(&b"x"[..]);
    let a: [u8; 3] = v.as_ref().try_into().unwrap(); let s = std::str::from_utf8(&v); let _ = String::from_utf8_lossy(&v);
}

fn tx_api(db: &Db, a: &Tree, b: &Tree, own: Tree) -> TransactionResult<(), String> {
    let r: TransactionResult<u8, String> = db.transaction(|t: &TransactionalTree| {
        let _: Option<IVec> = t.get("k")?; let _: Option<IVec> = t.insert("k", "v")?; let _: Option<IVec> = t.remove("k")?; t.insert(b"k", vec![1u8])?;
        t.insert(vec![1u8], "v")?; t.insert(&IVec::from("k"), "v")?; t.insert("k".as_bytes(), "v")?; let _: u64 = t.generate_id()?; t.flush();
        t.apply_batch(&Batch::default())?;
        let e: Result<Option<IVec>, UnabortableTransactionError> = t.get("k");
        if false { abort("x".to_string())?; } if false { return abort("x".to_string()); } if false { return Err(ConflictableTransactionError::Abort("x".into())); }
        Ok(1u8)
    });
    db.transaction::<_, _, ()>(|t| { t.get("k")?; Ok(()) }).map_err(|_| TransactionError::Abort(String::new()))?;
    let r: TransactionResult<(), String> = (a, b).transaction(|(x, y)| { x.insert("1", "2")?; y.insert("1", "2")?; Ok(()) });
    let r: TransactionResult<(), ()> = (&**db, a).transaction::<_, ()>(|_| Ok(()));
    let r: TransactionResult<(), ()> = (a,).transaction(|(x,)| { x.get("k")?; Ok(()) });
    let r: TransactionResult<(), ()> = (a, a, a, a, a, a, a, a, a, a, a, a, a, a).transaction(|t| { t.13.get("k")?; Ok(()) });
    let r: TransactionResult<(), ()> = [a, b][..].transaction(|t: &Vec<TransactionalTree>| { t[0].get("k")?; Ok(()) });
    let r: TransactionResult<(), ()> = vec![own.clone()].transaction(|t: &Vec<TransactionalTree>| { t[0].get("k")?; Ok(()) });
    let r: TransactionResult<(), ()> = Transactional::transaction(&own, |t: &TransactionalTree| { t.get("k")?; Ok(()) });
    let o: sled::Result<TransactionalTrees> = Transactional::<()>::make_overlay(&own);
    let v: TransactionalTree = <Tree as Transactional<()>>::view_overlay(&o?);
    fn generic<T: Transactional<String> + ?Sized>(t: &T) -> TransactionResult<u8, String> { t.transaction(|_| Ok(1)) }
    generic(&(a, b))?; generic(&own)?; generic(&a)?; generic(&[a, b][..])?;
    let c: ConflictableTransactionResult<u8> = Ok(1); let c: ConflictableTransactionResult<u8, String> = abort(String::new());
    Ok(())
}

fn main() { traits(); println!("compiled"); }
