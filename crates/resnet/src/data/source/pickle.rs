//! Reads the plain data in a Python pickle: numbers, strings, lists, dicts and numpy byte arrays.
//!
//! Nothing is executed: a class or function is a name, and a call of one stays a record of the call.
//! Objects live in one vector and refer to each other by place in it, so however a file nests or
//! repeats them, it takes no recursion to read it and no more memory than a small multiple of its size.

use std::borrow::Cow;

/// Place of an object in its [`Pickle`].
pub(super) type Id = usize;

/// An object.
#[derive(Debug, PartialEq)]
pub(super) enum Object<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// `bytes`, `bytearray` and strings of either Python.
    Bytes(&'a [u8]),
    /// Lists and tuples.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, by module and name.
    Global(&'a [u8], &'a [u8]),
    /// The call of a function with arguments, and the state then given to what it returned.
    Call {
        function: Id,
        arguments: Id,
        state: Option<Id>,
    },
}

/// The objects of a pickle.
pub(super) struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    root: Id,
}

/// Far more than any data set needs whose images are one array.
const MAX_OBJECTS: usize = 1 << 21;

/// What is wrong with a pickle.
type Wrong<T> = Result<T, String>;

impl<'a> Pickle<'a> {
    /// Reads a pickle of protocol 2 to 5.
    ///
    /// # Errors
    /// When it is damaged, or holds more than plain data.
    pub fn read(bytes: &'a [u8]) -> Wrong<Self> {
        let machine = Machine { bytes, at: 0, objects: vec![], stack: vec![], marks: vec![], memo: vec![] };
        machine.run()
    }

    /// The object that was pickled.
    pub fn root(&self) -> Id {
        self.root
    }

    pub fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id]
    }

    /// The value of a string key in a dict.
    pub fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let Object::Dict(entries) = self.get(dict) else { return None };
        let found = entries.iter().rev().find(|&&(k, _)| *self.get(k) == Object::Bytes(key.as_bytes()))?;
        Some(found.1)
    }

    pub fn list(&self, id: Id) -> Option<&[Id]> {
        if let Object::List(items) = self.get(id) { Some(items) } else { None }
    }

    pub fn int(&self, id: Id) -> Option<i64> {
        if let Object::Int(value) = *self.get(id) { Some(value) } else { None }
    }

    pub fn bytes(&self, id: Id) -> Option<&'a [u8]> {
        if let Object::Bytes(bytes) = *self.get(id) { Some(bytes) } else { None }
    }

    /// Rows, columns and values, row by row, of a numpy array of `uint8` with two dimensions.
    pub fn byte_matrix(&self, id: Id) -> Option<(usize, usize, Cow<'a, [u8]>)> {
        let &Object::Call { function, arguments, state } = self.get(id) else { return None };
        let Object::Global(module, name) = *self.get(function) else { return None };
        let (shape, dtype, by_columns, values) = match (module, name) {
            // _reconstruct(ndarray, (0,), 'b'), then the state (version, shape, dtype, fortran, values)
            (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => {
                let &[_, shape, dtype, fortran, values] = self.list(state?)? else { return None };
                (shape, dtype, *self.get(fortran) == Object::Bool(true), values)
            }
            // _frombuffer(values, dtype, shape, order)
            (b"numpy.core.numeric" | b"numpy._core.numeric", b"_frombuffer") => {
                let &[values, dtype, shape, order] = self.list(arguments)? else { return None };
                (shape, dtype, self.bytes(order)? == b"F", values)
            }
            _ => return None,
        };
        let &Object::Call { arguments: dtype, .. } = self.get(dtype) else { return None };
        let &[rows, columns] = self.list(shape)? else { return None };
        let [rows, columns] = [rows, columns].map(|n| self.int(n).and_then(|n| usize::try_from(n).ok()));
        let (rows, columns, values) = (rows?, columns?, self.bytes(values)?);
        if self.bytes(*self.list(dtype)?.first()?)? != b"u1" || rows.checked_mul(columns)? != values.len() {
            return None;
        }
        let values = if by_columns {
            (0..rows).flat_map(|row| values[row..].iter().step_by(rows).copied()).collect()
        } else {
            Cow::Borrowed(values)
        };
        Some((rows, columns, values))
    }
}

/// The stack machine that a pickle is a program for. Opcodes are those of Python's `pickletools`.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
}

impl<'a> Machine<'a> {
    fn run(mut self) -> Wrong<Pickle<'a>> {
        loop {
            let opcode = self.byte()?;
            if opcode == b'.' {
                let root = self.pop()?;
                return Ok(Pickle { objects: self.objects, root });
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Wrong<()> {
        match opcode {
            // Protocol and frame length say nothing that is needed.
            0x80 => self.byte().map(drop),
            0x95 => self.length(8).map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'q' | b'r' | 0x94 => self.memoize(opcode),
            b'h' | b'j' => self.recall(opcode),
            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Bool(true)),
            0x89 => self.push(Object::Bool(false)),
            b'K' | b'M' | b'J' | 0x8a => self.int(opcode),
            b'U' | b'C' | 0x8c => self.string(1),
            b'T' | b'B' | b'X' => self.string(4),
            0x8d | 0x8e | 0x96 => self.string(8),
            b')' | b']' => self.push(Object::List(vec![])),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push(Object::List(items))
            }
            b't' | b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Object::List(items))
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(items)
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)
            }
            b'}' => self.push(Object::Dict(vec![])),
            b's' => {
                let items = self.pop_many(2)?;
                self.set(&items)
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)
            }
            b'c' | 0x93 => self.global(opcode),
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push(Object::Call { function, arguments, state: None })
            }
            b'b' => self.build(),
            _ => Err(format!("opcode {opcode:#04x} at byte {} is not one of plain data", self.at - 1)),
        }
    }

    /// `LONG1` is kept to what fits 64 bits.
    fn int(&mut self, opcode: u8) -> Wrong<()> {
        let len = match opcode {
            b'K' => 1,
            b'M' => 2,
            b'J' => 4,
            _ => usize::from(self.byte()?),
        };
        let bytes = self.take(len)?;
        // Two's complement, except for the unsigned K and M.
        let negative = !matches!(opcode, b'K' | b'M') && bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut value = [if negative { 0xff } else { 0 }; 8];
        value.get_mut(..len).ok_or("an integer is larger than 64 bits")?.copy_from_slice(bytes);
        self.push(Object::Int(i64::from_le_bytes(value)))
    }

    fn string(&mut self, length_bytes: usize) -> Wrong<()> {
        let len = self.length(length_bytes)?;
        let bytes = self.take(len)?;
        self.push(Object::Bytes(bytes))
    }

    fn global(&mut self, opcode: u8) -> Wrong<()> {
        let (module, name) = if opcode == b'c' {
            (self.line()?, self.line()?)
        } else {
            let names = self.pop_many(2)?;
            match (&self.objects[names[0]], &self.objects[names[1]]) {
                (Object::Bytes(module), Object::Bytes(name)) => (*module, *name),
                _ => return Err("a class is not given by name".into()),
            }
        };
        self.push(Object::Global(module, name))
    }

    fn memoize(&mut self, opcode: u8) -> Wrong<()> {
        let top = *self.stack.last().ok_or("the stack is empty")?;
        let slot = match opcode {
            b'q' => self.length(1)?,
            b'r' => self.length(4)?,
            _ => self.memo.len(),
        };
        // Python numbers them without gaps; a far larger number would take memory for nothing.
        if slot > self.objects.len() {
            return Err(format!("memo {slot} is out of order"));
        }
        if slot >= self.memo.len() {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = Some(top);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Wrong<()> {
        let slot = self.length(if opcode == b'h' { 1 } else { 4 })?;
        let id = self.memo.get(slot).copied().flatten().ok_or_else(|| format!("memo {slot} is not there"))?;
        self.stack.push(id);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Wrong<()> {
        match self.top()? {
            Object::List(list) => list.extend(items),
            _ => return Err("items are added to what is not a list".into()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Wrong<()> {
        match self.top()? {
            Object::Dict(dict) => dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            _ => return Err("entries are added to what is not a dict".into()),
        }
        Ok(())
    }

    fn build(&mut self) -> Wrong<()> {
        let given = self.pop()?;
        match self.top()? {
            Object::Call { state, .. } => *state = Some(given),
            _ => return Err("state is given to what is not an object".into()),
        }
        Ok(())
    }

    fn push(&mut self, object: Object<'a>) -> Wrong<()> {
        if self.objects.len() == MAX_OBJECTS {
            return Err(format!("it holds more than {MAX_OBJECTS} objects"));
        }
        self.stack.push(self.objects.len());
        self.objects.push(object);
        Ok(())
    }

    fn top(&mut self) -> Wrong<&mut Object<'a>> {
        let top = *self.stack.last().ok_or("the stack is empty")?;
        Ok(&mut self.objects[top])
    }

    fn pop(&mut self) -> Wrong<Id> {
        self.pop_many(1).map(|items| items[0])
    }

    /// What was pushed since the last mark is out of reach for all but [`pop_to_mark`].
    ///
    /// [`pop_to_mark`]: Machine::pop_to_mark
    fn pop_many(&mut self, n: usize) -> Wrong<Vec<Id>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(n) {
            Some(start) if start >= floor => Ok(self.stack.split_off(start)),
            _ => Err("the stack is empty".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Wrong<Vec<Id>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    fn byte(&mut self) -> Wrong<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn line(&mut self) -> Wrong<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or("it ends inside a name")?;
        self.at += len + 1;
        Ok(&rest[..len])
    }

    /// An unsigned little-endian number of some bytes.
    fn length(&mut self, bytes: usize) -> Wrong<usize> {
        let number = self.take(bytes)?.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
        usize::try_from(number).map_err(|_| format!("a length of {number} is too large"))
    }

    fn take(&mut self, n: usize) -> Wrong<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..n).ok_or_else(|| {
            format!("it ends at byte {}, where {n} more bytes were expected after byte {}", self.bytes.len(), self.at)
        })?;
        self.at += n;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCHES: [&[u8]; 3] = [
        include_bytes!("../../../tests/fixtures/data/batch-protocol3.pkl"),
        include_bytes!("../../../tests/fixtures/data/batch-protocol4.pkl"),
        include_bytes!("../../../tests/fixtures/data/batch-protocol5.pkl"),
    ];

    fn data(pickle: &Pickle) -> Option<(usize, usize, Vec<u8>)> {
        let (rows, columns, values) = pickle.byte_matrix(pickle.entry(pickle.root(), "data")?)?;
        Some((rows, columns, values.into_owned()))
    }

    #[test]
    fn what_python_writes_is_read() {
        for bytes in BATCHES {
            let pickle = Pickle::read(bytes).unwrap();
            let labels = pickle.list(pickle.entry(pickle.root(), "labels").unwrap()).unwrap();
            let labels: Vec<i64> = labels.iter().map(|&label| pickle.int(label).unwrap()).collect();
            assert_eq!(labels, [7, 300, -1, 1 << 40]);
            let names = pickle.list(pickle.entry(pickle.root(), "names").unwrap()).unwrap();
            assert_eq!(pickle.bytes(names[0]).unwrap(), "\u{e9}t\u{e9}".as_bytes());
            assert_eq!(data(&pickle).unwrap(), (2, 3, vec![0, 1, 2, 3, 4, 5]));
        }
    }

    #[test]
    fn an_array_stored_by_columns_is_read_by_rows() {
        let [protocol3, _, protocol5] = BATCHES.map(<[u8]>::to_vec);
        let fortran = |mut bytes: Vec<u8>, from: &[u8], to: &[u8]| {
            let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
            bytes[at..at + to.len()].copy_from_slice(to);
            bytes
        };
        for bytes in [fortran(protocol3, b"b\x89C\x06", b"b\x88C\x06"), fortran(protocol5, b"\x8c\x01C", b"\x8c\x01F")]
        {
            assert_eq!(data(&Pickle::read(&bytes).unwrap()).unwrap(), (2, 3, vec![0, 2, 4, 1, 3, 5]));
        }
    }

    #[test]
    fn only_bytes_are_taken_for_pixels() {
        let pickle = Pickle::read(include_bytes!("../../../tests/fixtures/data/floats.pkl")).unwrap();
        assert_eq!(data(&pickle), None);
    }

    #[test]
    fn a_call_is_never_carried_out() {
        let pickle = Pickle::read(b"\x80\x02}U\x04datacos\nsystem\nU\x04true\x85Rs.").unwrap();
        assert_eq!(data(&pickle), None);
    }

    #[test]
    fn truncated_pickles_are_refused() {
        for bytes in BATCHES {
            for len in 0..bytes.len() {
                assert!(Pickle::read(&bytes[..len]).is_err(), "{len}");
            }
        }
    }

    #[test]
    fn damaged_pickles_do_no_harm() {
        for bytes in BATCHES {
            for at in 0..bytes.len() {
                for value in 0..=255 {
                    let mut bytes = bytes.to_vec();
                    bytes[at] = value;
                    if let Ok(pickle) = Pickle::read(&bytes) {
                        data(&pickle);
                    }
                }
            }
        }
    }

    #[test]
    fn a_pickle_cannot_take_all_memory_or_all_stack() {
        let nested = [vec![b']'; MAX_OBJECTS], vec![b'a'; MAX_OBJECTS - 1], vec![b'.']].concat();
        assert!(Pickle::read(&nested).is_ok());
        let mut many = vec![b']'; MAX_OBJECTS + 1];
        many.push(b'.');
        assert!(Pickle::read(&many).err().unwrap().contains("objects"));
        for bomb in [&b"T\xff\xff\xff\x7f."[..], b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", b"Nr\xff\xff\xff\xff."] {
            assert!(Pickle::read(bomb).is_err());
        }
    }
}
