"""A short source file in each language, and the units that it must give: (unit, name) in order."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    text: str
    units: list[tuple[str, str]]
    contexts: dict[str, str] = field(default_factory=dict)
    """Last line of the context of some units, by name."""


PYTHON = '''"""Module."""
import os

LIMIT = 3


# About area.
@cache
@other(
    1,
)
def area(r):
    def helper():
        return r
    return helper()


class Shape(Base):
    """A shape."""

    sides = 0

    # Said of name.
    @property
    def name(self):
        return "x"

    colour = "red"

    class Inner:
        """Deep."""
        def deep(self): return 1

if os.name == "posix":
    async def fetch(url):
        return url


if __name__ == "__main__":
    area(2)
'''

TYPESCRIPT = """import { x } from "y";
import z from "z";
import w from "w";
import v from "v";

/** Doc of Foo. */
@Injectable()
export class Foo<T> extends Bar implements Baz {
  private a = 1;

  constructor(private b: string) { super(); }

  // comment
  @Input() get value(): T {
    return this._v;
  }

  handler = async (e: Event) => {
    console.log(e);
  };
}

export const add = (a: number, b: number): number => a + b;

export default function main() {
  function inner() {}
}

const actions = {
  go() { return 1; },
  "stop": async () => {
    return 2;
  },
};

export interface Opts {
  a: string;
  b(): void;
}
type A = string;
type B = { a: 1 };

namespace N.M {
  export function f() {}
}
function over(a: string): void;
function over(a: number): void;
function over(a: any) {
  return a;
}
"""

JAVASCRIPT = """'use strict';
const a = require('a');
const b = require('b');
const c = require('c');

class Queue extends Base {
  #items = [];
  push(x) { this.#items.push(x); }
  static of(...xs) {
    return new Queue();
  }
}

const Comp = React.memo(({ a }) => {
  return <div>{a}</div>;
});

module.exports.foo = function () {
  return 3;
};

function* walk(tree) {
  yield tree;
}

(function () {
  function hidden() {
    return 1;
  }
})();
"""

GO = """// Package x does.
package x

import (
	"fmt"
)

const A = 1

// Server serves.
type Server struct {
	a int
}

// Start starts it.
func (s *Server) Start() error {
	return nil
}

func (l List[T]) Len() int { return 0 }

type (
	P struct {
		x int
	}
	Q interface {
		Do()
	}
)

func main() {
	fmt.Println("x")
}
"""

RUST = """//! crate doc
use std::fmt;
use std::io;
use std::env;

/// A point.
#[derive(Debug)]
pub struct Point<T> {
    x: T,
}

impl<T: Copy> Point<T> {
    /// New.
    #[inline]
    pub fn new(x: T) -> Self {
        Self { x }
    }
    fn b(&self) {}
}
impl fmt::Display for Point<f32> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        Ok(())
    }
}
pub trait Area {
    fn area(&self) -> f32;
    fn twice(&self) -> f32 {
        2.0 * self.area()
    }
}
macro_rules! m {
    () => {};
}
#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn works() {
        assert!(true);
    }
}
"""

C = """#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

typedef struct {
  int a;
} Name;

struct point {
  int x, y;
};

#ifdef X
/* guarded */
static int *guarded(const char *a, int (*f)(int)) {
  return 0;
}
#endif

static struct ops my_ops = {
  .a = 1,
};

int main(void)
{
  return 0;
}
"""

CPP = """#pragma once
#include <a>
#include <b>
#include <c>

namespace ns {
namespace in {
// doc
template <typename T>
class Foo : public Bar {
 public:
  Foo() : a(1) {}
  ~Foo();
  T* get(int x) const { return &v; }
  bool operator<<(int) const {
    return true;
  }
 private:
  int a;
};
}  // namespace in
}  // namespace ns

ns::Foo<int>& ns::Foo<int>::ref() {
  return *this;
}
extern "C" {
  void cfun(void) {
  }
}
enum class E {
  A, B
};
"""

CSHARP = """using System;
using System.IO;
using System.Linq;
using System.Text;

namespace My.App
{
    /// <summary>Doc</summary>
    [Serializable]
    public class Foo : Bar
    {
        private int x;
        public int P { get; set; }

        public Foo() { }

        /// doc
        [Test]
        public async Task<int> RunAsync<T>(int a) => await X();

        public static Foo operator +(Foo a, Foo b) {
            return a;
        }
    }
    public interface IX {
        void A();
    }
}
"""

JAVA = """package a.b;

import java.io.*;
import java.net.*;
import java.util.*;

/** Doc. */
@Entity
public class Foo<T> extends Bar {
    private int a;

    public Foo(int a) { this.a = a; }

    /**
     * Doc m.
     */
    @Override
    public <X> List<X> get(String s) throws E {
        return new ArrayList<>() {{ add(1); }};
    }

    static class Inner {
        void go() {
        }
    }
}
interface I {
    void a();
    default void b() {
    }
}
"""

RUBY = """require 'x'
require 'y'
require 'z'
require 'w'

module A
  # doc of B
  class B < C
    attr_reader :x

    def initialize(x)
      @x = x
    end

    def self.make; new; end

    class << self
      def q?
        1
      end
    end
  end
end
"""

PHP = """<?php
namespace App\\Models;

use Foo;
use Bar;

/**
 * Doc
 */
#[Attr]
final class User extends Model
{
    protected $a = 1;

    public function name(): string
    {
        return "x";
    }
}

function helper($a) {
    return $a;
}
?>
<html>
<b><?= $x ?></b>
"""

BASH = """#!/usr/bin/env bash
set -euo pipefail
readonly a=1
readonly b=2
readonly c=3

# doc
foo() {
  echo hi
}

function bar {
  echo bar
}

foo
bar
"""

SAMPLES: dict[str, Sample] = {
    "shape.py": Sample(
        PYTHON,
        [
            ("block", ""),
            ("function", "area"),
            ("class", "Shape"),
            ("method", "Shape.name"),
            ("class", "Shape.Inner"),
            ("method", "Shape.Inner.deep"),
            ("function", "fetch"),
            ("block", ""),
        ],
        {"Shape.name": "class Shape(Base)", "Shape.Inner.deep": "class Inner"},
    ),
    "foo.ts": Sample(
        TYPESCRIPT,
        [
            ("block", ""),
            ("class", "Foo"),
            ("method", "Foo.constructor"),
            ("method", "Foo.value"),
            ("method", "Foo.handler"),
            ("function", "add"),
            ("function", "main"),
            ("function", "actions.go"),
            ("function", "actions.stop"),
            ("class", "Opts"),
            ("block", ""),
            ("function", "N.M.f"),
            ("function", "over"),
        ],
        {"Foo.handler": "class Foo<T> extends Bar implements Baz"},
    ),
    "queue.jsx": Sample(
        JAVASCRIPT,
        [
            ("block", ""),
            ("class", "Queue"),
            ("method", "Queue.push"),
            ("method", "Queue.of"),
            ("function", "Comp"),
            ("function", "module.exports.foo"),
            ("function", "walk"),
            ("function", "hidden"),
        ],
        {"Queue.of": "class Queue extends Base"},
    ),
    "server.go": Sample(
        GO,
        [
            ("block", ""),
            ("class", "Server"),
            ("method", "Server.Start"),
            ("method", "List.Len"),
            ("class", "P"),
            ("class", "Q"),
            ("function", "main"),
        ],
    ),
    "point.rs": Sample(
        RUST,
        [
            ("block", ""),
            ("class", "Point"),
            ("method", "Point.new"),
            ("method", "Point.b"),
            ("method", "Point.fmt"),
            ("class", "Area"),
            ("method", "Area.twice"),
            ("function", "m"),
            ("function", "tests.works"),
        ],
        {"Point.fmt": "impl fmt::Display for Point<f32>", "tests.works": "mod tests"},
    ),
    "main.c": Sample(
        C,
        [
            ("block", ""),
            ("class", "Name"),
            ("class", "point"),
            ("function", "guarded"),
            ("block", ""),
            ("function", "main"),
        ],
    ),
    "foo.h": Sample(
        CPP,
        [
            ("block", ""),
            ("class", "ns.in.Foo"),
            ("method", "ns.in.Foo.Foo"),
            ("method", "ns.in.Foo.get"),
            ("method", "ns.in.Foo.operator<<"),
            ("method", "ns.Foo.ref"),
            ("function", "cfun"),
            ("class", "E"),
        ],
        {"ns.in.Foo.get": "class Foo : public Bar"},
    ),
    "foo.cs": Sample(
        CSHARP,
        [
            ("block", ""),
            ("class", "My.App.Foo"),
            ("method", "My.App.Foo.Foo"),
            ("method", "My.App.Foo.RunAsync"),
            ("method", "My.App.Foo.+"),
            ("class", "My.App.IX"),
        ],
        {"My.App.Foo.RunAsync": "public class Foo : Bar"},
    ),
    "Foo.java": Sample(
        JAVA,
        [
            ("block", ""),
            ("class", "Foo"),
            ("method", "Foo.Foo"),
            ("method", "Foo.get"),
            ("class", "Foo.Inner"),
            ("method", "Foo.Inner.go"),
            ("class", "I"),
            ("method", "I.b"),
        ],
        {"Foo.get": "public class Foo<T> extends Bar"},
    ),
    "b.rb": Sample(
        RUBY,
        [
            ("block", ""),
            ("class", "A.B"),
            ("method", "A.B.initialize"),
            ("method", "A.B.make"),
            ("method", "A.B.q?"),
        ],
        {"A.B.make": "class B < C"},
    ),
    "user.php": Sample(
        PHP,
        [("block", ""), ("class", "User"), ("method", "User.name"), ("function", "helper"), ("block", "")],
        {"User.name": "final class User extends Model"},
    ),
    "run.sh": Sample(BASH, [("block", ""), ("function", "foo"), ("function", "bar"), ("block", "")]),
}
SAMPLES["view.tsx"] = SAMPLES["queue.jsx"]
