//! Transactions over several trees: orders that take goods from a stock, from many threads, and never too many.

use sled::Transactional;
use sled::transaction::{
    ConflictableTransactionError, TransactionError, TransactionResult, TransactionalTree,
    UnabortableTransactionError,
};
use std::thread;

/// Why an order was not taken.
#[derive(Debug, PartialEq)]
enum Refused {
    UnknownItem,
    SoldOut,
}

/// So that `?` works on it in the closure.
impl From<Refused> for ConflictableTransactionError<Refused> {
    fn from(refused: Refused) -> Self {
        ConflictableTransactionError::Abort(refused)
    }
}

/// A part of a transaction: the number at a key.
fn number(tree: &TransactionalTree, key: &str) -> Result<Option<u64>, UnabortableTransactionError> {
    Ok(tree.get(key)?.map(|bytes| u64::from_be_bytes(bytes.as_ref().try_into().expect("eight bytes"))))
}

/// Takes an item out of the stock and writes the order down; its number.
fn order(stock: &sled::Tree, orders: &sled::Tree, item: &str) -> TransactionResult<u64, Refused> {
    (stock, orders).transaction(|(stock, orders)| {
        let left = number(stock, item)?.ok_or(Refused::UnknownItem)?;
        let left = left.checked_sub(1).ok_or(Refused::SoldOut)?;
        stock.insert(item, left.to_be_bytes())?;
        // The next number, from the last key that is there. If others order meanwhile, all of this runs again.
        let next = match orders.last()? {
            Some((key, _)) => u64::from_be_bytes(key.as_ref().try_into().expect("eight bytes")) + 1,
            None => 1,
        };
        orders.insert(next.to_be_bytes(), item)?;
        Ok(next)
    })
}

pub fn main() -> sled::Result<()> {
    let db = sled::Config::new().temporary(true).open()?;
    let (stock, orders) = (db.open_tree("stock")?, db.open_tree("orders")?);
    stock.insert("lamp", 30_u64.to_be_bytes())?;

    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (stock, orders) = (stock.clone(), orders.clone());
            thread::spawn(move || (0..10).filter(|_| order(&stock, &orders, "lamp").is_ok()).count())
        })
        .collect();
    let taken: usize = threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();

    // 40 were wanted, 30 were there: each was sold once, and orders are numbered without a gap.
    assert_eq!((taken, orders.len()), (30, 30));
    assert_eq!(stock.get("lamp")?, Some((&0_u64.to_be_bytes()).into()));
    assert_eq!(orders.last()?.expect("some were taken").0, 30_u64.to_be_bytes());
    assert_eq!(order(&stock, &orders, "lamp"), Err(TransactionError::Abort(Refused::SoldOut)));
    assert_eq!(order(&stock, &orders, "sofa"), Err(TransactionError::Abort(Refused::UnknownItem)));

    println!("{taken} of 40 orders were taken, numbered 1 to 30");
    Ok(())
}
