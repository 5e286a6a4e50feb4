#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""
Check the specification: identifiers, key words, agreement with the wire header,
and identifiers that the rest of the tree names. Prints KTAP.

  lint.py               check
  lint.py --clauses     print each clause and the tests that name it, or "no test yet"
  lint.py --html FILE   check that a rendering is complete
  lint.py --selftest    seed one fault at a time and see that its check fails
"""
import argparse
import copy
import os
import re
import sys

SPEC = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(SPEC)
SECTION = "virtio-iommu-stage1.tex"
ASIDE = "comparison.tex"
REGISTRY = "clauses.txt"
HEADER = "include/uapi/linux/virtio_iommu_stage1.h"
# Where identifiers are looked for
ROOTS = ["drivers", "include", "linux-patches", "qemu", "qemu-patches", "tools"]
# Where identifiers are not those of tests: seeded faults, and how tests are run
NOT_TESTS = ("tools/testing/faults/", "tools/lab/")
SKIP_DIRS = {".git", "build"}
MAX_FILE = 1 << 20

# What the text may name that virtio itself defines
FOREIGN_CONSTANTS = {"VIRTIO_IOMMU_S_" + s for s in
                     "OK IOERR UNSUPP DEVERR INVAL RANGE NOENT FAULT NOMEM".split()}
FOREIGN_CONSTANTS |= {"VIRTIO_IOMMU_F_" + f for f in "DOMAIN_RANGE MAP_UNMAP PROBE".split()}
FOREIGN_CONSTANTS |= {"VIRTIO_IOMMU_FAULT_" + f for f in
                      "R_UNKNOWN R_DOMAIN R_MAPPING F_READ F_WRITE F_ADDRESS".split()}
FOREIGN_CONSTANTS |= {"VIRTIO_IOMMU_RESV_MEM_T_RESERVED", "VIRTIO_IOMMU_RESV_MEM_T_MSI"}
FOREIGN_CONSTANTS |= {"VIRTIO_F_INDIRECT_DESC", "VIRTIO_F_IN_ORDER", "VIRTIO_F_RING_RESET"}
# Structures with their size, where it matters
FOREIGN_STRUCTS = {"virtio_iommu_config": None, "virtio_iommu_fault": None,
                   "virtio_iommu_probe_property": 4, "virtio_iommu_req_head": 4,
                   "virtio_iommu_req_tail": 4}
FOREIGN_FIELDS = set("""address bypass device_status domain_range end input_range probe_size
    reason subtype""".split())

# pandoc drops macros that it does not know without a word
MACROS = set("""section subsection subsubsection paragraph subparagraph label ref
    devicenormative drivernormative clause field emph item begin end hline url""".split())
ENVIRONMENTS = {"description", "itemize", "enumerate", "lstlisting", "tabular"}

ID = re.compile(r"\b([A-Z]{3}-[DR]-[0-9]+)\b")
CLAUSE = re.compile(r"\\clause\{([^}]*)\}")
KEYWORD = re.compile(r"\b(?:MUST NOT|MUST|SHOULD NOT|SHOULD|MAY NOT|MAY|SHALL NOT|SHALL|"
                     r"REQUIRED|RECOMMENDED|OPTIONAL)\b")
KEYWORDS = {"MUST NOT", "MUST", "SHOULD NOT", "SHOULD", "MAY"}
HEADING = re.compile(r"\\(?:section|subsection|subsubsection|paragraph|subparagraph)\{|"
                     r"\\(device|driver)normative\{")
LISTING = re.compile(r"\\begin\{lstlisting\}(.*?)\\end\{lstlisting\}", re.S)


def key(ident):
    series, number = ident.rsplit("-", 1)
    return series, int(number)


def blank(match):
    """Replace by as many lines, so that line numbers stay."""
    return "\n" * match.group(0).count("\n")


class Header:
    """Constants and structures of the C header."""

    def __init__(self, text):
        text = re.sub(r"/\*.*?\*/", blank, text, flags=re.S)
        self.constants, self.structs = {}, {}
        for name, value in re.findall(r"^#define[ \t]+(VIRTIO_\w+)[ \t]+(\S.*)$", text, re.M):
            self.constants[name] = number(value)
        for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.M | re.S):
            self.structs[name] = members(body)
        self.fields = {m[1] for s in self.structs.values() for m in s if m[1]}

    def size(self, name):
        """In bytes. The members of a union have the same size."""
        if name in FOREIGN_STRUCTS:
            return FOREIGN_STRUCTS[name]
        total, union = 0, None
        for kind, _, count in self.structs[name]:
            if kind == "union":
                union = 0
            elif kind == "end":
                total, union = total + union, None
            else:
                scalar = re.fullmatch(r"(?:le|u)(\d+)", kind)
                size = (int(scalar[1]) // 8 if scalar else self.size(kind)) * (count or 1)
                if union is None:
                    total += size
                else:
                    union = max(union, size)
        return total

    def parts(self, name):
        """Bytes of a request that the device reads, and that it writes."""
        tail = self.size(self.structs[name][-1][0])
        return self.size(name) - tail, tail


def number(value):
    value = value.strip()
    if re.fullmatch(r"(0x[0-9a-fA-F]+|[0-9]+)", value):
        return int(value, 0)
    shift = re.fullmatch(r"\((\d+) << (\d+)\)", value)
    return int(shift[1]) << int(shift[2]) if shift else value


def members(body):
    """(type, name, length of the array) of each; a union is between "union" and "end"."""
    found = []
    for m in re.finditer(r"^\s*(?:(?:struct\s+)?(\w+)\s+(\w+)(?:\[(\d+)\])?;|(union) \{|(\});)",
                         body, re.M):
        if m[1]:
            found.append((m[1].lstrip("_"), m[2], int(m[3] or 0)))
        else:
            found.append((m[4] or "end", "", 0))
    return found


class Tree:
    """Everything that the checks look at. Faults are seeded in a copy."""

    def __init__(self):
        def read(*path):
            with open(os.path.join(ROOT, *path), encoding="utf-8") as f:
                return f.read()
        self.text = read("spec", SECTION)
        self.aside = read("spec", ASIDE)
        self.registry = read("spec", REGISTRY)
        self.header = read(HEADER)
        self.mentions = list(mentions())

    @property
    def tex(self):
        return uncomment(self.text)

    @property
    def prose(self):
        return LISTING.sub(blank, self.tex)

    def line(self, pos, text=None):
        return f"{SECTION}:{(text or self.tex).count(chr(10), 0, pos) + 1}"

    def clauses(self):
        """The registry: identifier -> gist, and its malformed lines."""
        good, bad = {}, []
        for n, line in enumerate(self.registry.splitlines(), 1):
            if line.startswith("#") or not line:
                continue
            ident, tab, gist = line.partition("\t")
            if not tab or not gist.strip() or not ID.fullmatch(ident):
                bad.append(f"{REGISTRY}:{n}: not of the form identifier, tab, gist")
            elif ident in good:
                bad.append(f"{REGISTRY}:{n}: {ident} is there twice")
            else:
                good[ident] = gist.strip()
        return good, bad

    def live(self):
        return {i for i, gist in self.clauses()[0].items() if not gist.startswith("retired:")}

    def sections(self):
        """(kind, start, end) of each section, kind being device, driver or None."""
        heads = list(HEADING.finditer(self.prose))
        ends = [h.start() for h in heads[1:]] + [len(self.prose)]
        if heads:
            yield None, 0, heads[0].start()
        for head, end in zip(heads, ends):
            yield head[1], head.start(), end

    def sentences(self, start, end):
        """(position, sentence) of each sentence from start to end."""
        for para in re.finditer(r"(?:[^\n]*\S[^\n]*(?:\n|$))+", self.prose[start:end]):
            pos = start + para.start()
            for part in re.split(r"((?<=[.!?])\s+(?=[A-Z\\]))", para.group(0)):
                if part.strip():
                    yield pos + len(part) - len(part.lstrip()), part.strip()
                pos += len(part)


def uncomment(text):
    return re.sub(r"(?<!\\)%.*", "", text)


def is_test(path):
    return not path.startswith(NOT_TESTS) and (path.startswith("tools/") or "test" in path)


def mentions():
    for top in ROOTS:
        for where, dirs, files in os.walk(os.path.join(ROOT, top)):
            dirs[:] = sorted(d for d in dirs if d not in SKIP_DIRS)
            for name in sorted(files):
                path = os.path.join(where, name)
                if os.path.islink(path) or os.path.getsize(path) > MAX_FILE:
                    continue
                with open(path, "rb") as f:
                    data = f.read()
                if b"-D-" not in data and b"-R-" not in data:
                    continue
                for n, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
                    for ident in ID.findall(line):
                        yield ident, os.path.relpath(path, ROOT), n


# The checks: each a generator of complaints

def check_sentences(t):
    """each normative sentence has exactly one identifier, at its start"""
    for kind, start, end in t.sections():
        if not kind:
            continue
        for pos, s in t.sentences(start, end):
            ids, words = CLAUSE.findall(s), KEYWORD.findall(s)
            at = t.line(pos)
            if len(ids) > 1:
                yield f"{at}: several identifiers in a sentence: {' '.join(ids)}"
            elif words and not ids:
                yield f"{at}: {words[0]} without an identifier"
            elif ids and not words:
                yield f"{at}: {ids[0]} is not normative"
            elif ids and not s.startswith("\\clause"):
                yield f"{at}: {ids[0]} is not at the start of its sentence"


def check_keywords(t):
    """key words are those of RFC 2119 that we use, and only in normative sections"""
    for kind, start, end in t.sections():
        for m in KEYWORD.finditer(t.prose, start, end):
            word = re.sub(r"\s+", " ", m[0])
            if not kind:
                yield f"{t.line(m.start())}: {word} outside of a normative section"
            elif word not in KEYWORDS:
                yield f"{t.line(m.start())}: {word}: use MUST, SHOULD or MAY"
    for m in re.finditer(r"\b(MUST|SHOULD|MAY)\n", t.prose):
        if re.match(r"\s*NOT\b", t.prose[m.end():]):
            yield f"{t.line(m.start())}: {m[1]} NOT is divided by a line break"


def check_unique(t):
    """identifiers are well formed, unique, and of the kind of their section"""
    seen = {}
    for kind, start, end in t.sections():
        for m in CLAUSE.finditer(t.prose, start, end):
            at = t.line(m.start())
            if not ID.fullmatch(m[1]):
                yield f"{at}: {m[1]} is no identifier"
                continue
            if m[1] in seen:
                yield f"{at}: {m[1]} is already at {seen[m[1]]}"
            seen[m[1]] = at
            want = {"device": "-D-", "driver": "-R-"}.get(kind)
            if not want:
                yield f"{at}: {m[1]} outside of a normative section"
            elif want not in m[1]:
                yield f"{at}: {m[1]} in a section of {kind} requirements"


def check_registry(t):
    """clauses.txt lists the identifiers of the text, without gaps"""
    known, bad = t.clauses()
    yield from bad
    text, live = set(CLAUSE.findall(t.prose)), t.live()
    for ident in sorted(text - live, key=str):
        why = "is retired" if ident in known else "is missing"
        yield f"{REGISTRY}: {ident} is in the text, but {why} here"
    for ident in sorted(live - text, key=key):
        yield f"{REGISTRY}: {ident} is not in the text, and not retired"
    series = {}
    for ident in known:
        series.setdefault(key(ident)[0], []).append(key(ident)[1])
    for name, numbers in series.items():
        if numbers != list(range(1, len(numbers) + 1)):
            gap = next(n for n, got in enumerate(numbers, 1) if n != got)
            yield f"{REGISTRY}: {name}-{gap} is missing or out of order"


def check_constants(t):
    """constants have the values of the C header, and all of them are described"""
    h = Header(t.header)
    defined = {}
    for listing in LISTING.finditer(t.tex):
        for m in re.finditer(r"^#define[ \t]+(\w+)[ \t]+(\S.*)$", listing[1], re.M):
            at, value = t.line(listing.start(1) + m.start()), number(m[2])
            defined[m[1]] = value
            if m[1] not in h.constants:
                yield f"{at}: {m[1]} is not in {HEADER}"
            elif h.constants[m[1]] != value:
                yield f"{at}: {m[1]} is {value}, in {HEADER} {h.constants[m[1]]}"
    for m in re.finditer(r"\\item\[(VIRTIO_\w+) \((\w+)\)\]", t.prose):
        value = number(m[2])
        defined[m[1]] = value
        if m[1] not in h.constants:
            yield f"{t.line(m.start())}: {m[1]} is not in {HEADER}"
        elif h.constants[m[1]] != value:
            yield f"{t.line(m.start())}: {m[1]} is {value}, in {HEADER} {h.constants[m[1]]}"
    for m in re.finditer(r"\bVIRTIO_\w+(\*?)", t.tex):
        name = m[0].rstrip("*")
        family = m[1] and any(c.startswith(name) for c in FOREIGN_CONSTANTS | set(h.constants))
        if not family and name not in FOREIGN_CONSTANTS and name not in h.constants:
            yield f"{t.line(m.start())}: {name} is in no header"
    for name in h.constants:
        if name not in defined:
            yield f"{HEADER}: {name} is not described in {SECTION}"


def check_structs(t):
    """structures have the members of the C header, and all of them are described"""
    h, seen = Header(t.header), set()
    for listing in LISTING.finditer(t.tex):
        for m in re.finditer(r"^struct (\w+) \{(.*?)^\};", listing[1], re.M | re.S):
            at = t.line(listing.start(1) + m.start())
            seen.add(m[1])
            if m[1] not in h.structs:
                yield f"{at}: struct {m[1]} is not in {HEADER}"
            elif h.structs[m[1]] != members(m[2]):
                yield f"{at}: struct {m[1]} differs from {HEADER}"
    for name in h.structs:
        if name not in seen:
            yield f"{HEADER}: struct {name} is not described in {SECTION}"
    for m in re.finditer(r"\bstruct\s+(\w+)", t.prose):
        if m[1] not in h.structs and m[1] not in FOREIGN_STRUCTS:
            yield f"{t.line(m.start())}: struct {m[1]} is in no header"


def check_fields(t):
    """names of fields, and sizes, are those of the C header"""
    h = Header(t.header)
    for m in re.finditer(r"\\field\{([^}]*)\}", t.prose):
        if m[1] not in h.fields and m[1] not in FOREIGN_FIELDS:
            yield f"{t.line(m.start())}: no structure has a field {m[1]}"
    sizes = re.findall(r"(\d+) \+ (\d+) \*\s+\\field\{nr\}", t.prose)
    want = (str(h.size("virtio_iommu_req_invalidate")), str(h.size("virtio_iommu_inv_desc")))
    for got in sizes:
        if got != want:
            yield f"{SECTION}: the length of a request is {' + '.join(want)} * nr, not {got}"
    if not sizes:
        yield f"{SECTION}: the length of a request, {' + '.join(want)} * nr, is not given"
    rows = list(re.finditer(r"^struct (\w+) & (\d+) & (\d+) \\\\", t.prose, re.M))
    for m in rows:
        if m[1] in h.structs and h.parts(m[1]) != (int(m[2]), int(m[3])):
            yield f"{t.line(m.start())}: {m[1]} has {' and '.join(map(str, h.parts(m[1])))} bytes"
    fixed = {name for name, m in h.structs.items() if m[-1][0] == "virtio_iommu_req_tail"}
    for name in sorted(fixed - {m[1] for m in rows}):
        yield f"{SECTION}: the length of struct {name} is not given"
    for m in re.finditer(r"(\w+)\s+request\s+is\s+(?:as\s+long\s+as\s+struct\s+\w+\s+or\s+longer,\s+but\s+)?"
                         r"not\s+(\d+)\s+bytes", t.prose):
        name = f"virtio_iommu_req_{m[1].lower()}"
        if name not in fixed or h.parts(name)[0] != int(m[2]):
            yield f"{t.line(m.start())}: {m[2]} is not the length of {m[1]}"


def check_table(t):
    """rows of tables that name a status and a clause agree with the clause"""
    said = {}
    for _, start, end in t.sections():
        for _, s in t.sentences(start, end):
            for ident in CLAUSE.findall(s):
                said[ident] = s
    for m in re.finditer(r"& (VIRTIO_IOMMU_S_\w+) & (\S+) \\\\", t.prose):
        if m[1] not in said.get(m[2], ""):
            yield f"{t.line(m.start())}: {m[2]} does not say {m[1]}"


def check_references(t):
    """references and identifiers in the text lead somewhere"""
    labels = re.findall(r"\\label\{([^}]*)\}", t.prose)
    labels += [f"{kind}normative:{label}" for kind, label in re.findall(
        r"\\(device|driver)normative\{[^}]*\}\{[^}]*\}\{([^}]*)\}", t.prose)]
    for label in sorted(set(labels)):
        if labels.count(label) > 1:
            yield f"{SECTION}: label {label} is there twice"
    for m in re.finditer(r"\\ref\{([^}]*)\}", t.prose):
        if re.sub(r"\s+", " ", m[1]) not in labels:
            yield f"{t.line(m.start())}: no label {m[1]}"
    live = t.live()
    for m in ID.finditer(t.prose):
        if m[1] not in live:
            yield f"{t.line(m.start())}: no clause {m[1]}"


def check_latex(t):
    """only macros that the renderings know, braces and environments in pairs"""
    yield from latex(t.tex, SECTION)
    yield from latex(uncomment(t.aside), ASIDE)


def latex(tex, name):
    prose = LISTING.sub(blank, tex)

    def line(pos):
        return f"{name}:{tex.count(chr(10), 0, pos) + 1}"

    for m in re.finditer(r"\\([a-zA-Z]+)", prose):
        if m[1] not in MACROS:
            yield f"{line(m.start())}: unknown macro \\{m[1]}"
    stack = []
    for m in re.finditer(r"\\(begin|end)\{(\w+)\}", tex):
        at = line(m.start())
        if m[2] not in ENVIRONMENTS:
            yield f"{at}: unknown environment {m[2]}"
        if m[1] == "begin":
            stack.append(m[2])
        elif not stack or stack.pop() != m[2]:
            yield f"{at}: \\end{{{m[2]}}} without its \\begin"
    if stack:
        yield f"{name}: \\begin{{{stack[-1]}}} without its \\end"
    for para in re.finditer(r"(?:[^\n]*\S[^\n]*(?:\n|$))+", prose):
        if para.group(0).count("{") != para.group(0).count("}"):
            yield f"{line(para.start())}: braces are not in pairs in this paragraph"


def check_aside(t):
    """the comparison is not normative, names clauses that exist, and sources that are listed"""
    tex = uncomment(t.aside)

    def line(pos):
        return f"{ASIDE}:{tex.count(chr(10), 0, pos) + 1}"

    for m in re.finditer(r"\\clause\b|\\(?:device|driver)normative\b", tex):
        yield f"{line(m.start())}: {m[0]} does not belong here"
    for m in KEYWORD.finditer(tex):
        yield f"{line(m.start())}: {m[0]} outside of a normative section"
    live = t.live()
    for m in ID.finditer(tex):
        if m[1] not in live:
            yield f"{line(m.start())}: no clause {m[1]}"
    sources = re.findall(r"\\item\[(S\d+)\]", tex)
    cited = re.findall(r"(?<!\\item\[)\b(S\d+)\b", tex)
    for name in sorted(set(sources) | set(cited)):
        if sources.count(name) != 1:
            yield f"{ASIDE}: source {name} is listed {sources.count(name)} times"
        elif name not in cited:
            yield f"{ASIDE}: source {name} is not referred to"
    for m in re.finditer(r"\\item\[(S\d+)\](.*?)(?=\\item|\\end)", tex, re.S):
        if not re.search(r"\\url\{https://[^\s{}]+\}", m[2]):
            yield f"{line(m.start())}: source {m[1]} has no address"


def check_tree(t):
    """identifiers that the tree names exist"""
    known, live = t.clauses()[0], t.live()
    series = {key(i)[0][:3] for i in known}
    for ident, path, n in t.mentions:
        if ident[:3] in series and ident not in live:
            why = "is retired" if ident in known else "does not exist"
            yield f"{path}:{n}: {ident} {why}"


CHECKS = [check_sentences, check_keywords, check_unique, check_registry, check_constants,
          check_structs, check_fields, check_table, check_references, check_latex, check_aside,
          check_tree]


def failures(tree):
    return {check: list(check(tree)) for check in CHECKS}


def report(results):
    """Print KTAP for (name, complaints) and return the exit status."""
    print("TAP version 13")
    print(f"1..{len(results)}")
    for n, (name, complaints) in enumerate(results, 1):
        for line in complaints:
            print(f"# {line}")
        print(f"{'not ok' if complaints else 'ok'} {n} - {name}")
    return 1 if any(complaints for _, complaints in results) else 0


def lint():
    tree = Tree()
    status = report([(f"spec: {c.__doc__}", bad) for c, bad in failures(tree).items()])
    for line in untested(tree):
        print(f"# {line}")
    return status


def named(tree):
    """Where tests, and other files, name each clause: identifier -> path -> line numbers."""
    tests, other = {}, {}
    for ident, path, n in tree.mentions:
        where = tests if is_test(path) else other
        where.setdefault(ident, {}).setdefault(path, []).append(str(n))
    return tests, other


def untested(tree):
    """The clauses that no test names: a count, and a line for each series."""
    tests, live = named(tree)[0], tree.live()
    series = {}
    for ident in tree.clauses()[0]:
        if ident in live and ident not in tests:
            name, number = key(ident)
            runs = series.setdefault(name, [])
            if runs and runs[-1][1] == number - 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
    left = sum(last - first + 1 for runs in series.values() for first, last in runs)
    yield f"no test yet: {left} of {len(live)} clauses"
    for name, runs in series.items():
        yield f"  {name}: " + ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in runs)


def clauses():
    tree = Tree()
    known, (tests, other) = tree.clauses()[0], named(tree)

    def places(found):
        return [f"{p}:{','.join(n)}" for p, n in found.items()]

    live = tree.live()
    for ident, gist in known.items():
        if ident not in live:
            continue
        print(f"{ident:<9} {gist}")
        for place in places(tests.get(ident, {})):
            print(f"{'':<9}   test: {place}")
        if ident not in tests:
            print(f"{'':<9}   no test yet")
        for place in places(other.get(ident, {})):
            print(f"{'':<9}   else: {place}")
    print(f"{len(live & set(tests))} of {len(live)} clauses are named by a test")
    for line in untested(tree):
        print(line)
    return 0


def html(path):
    tree = Tree()
    with open(path, encoding="utf-8") as f:
        page = f.read()
    ids = re.findall(r'\bid="([^"]*)"', page)
    bad = [f"{path}: {i} is there {ids.count(i)} times" for i in sorted(tree.live(), key=key)
           if ids.count(i) != 1]
    bad += [f"{path}: link to nowhere: {a}" for a in re.findall(r'href="#([^"]*)"', page)
            if a not in ids]
    bad += [f"{path}: LaTeX left over: {m}" for m in
            re.findall(r"\\(?:clause|field|ref|label|emph|begin)\b", page)]
    for line in bad:
        print(line, file=sys.stderr)
    return 1 if bad else 0


# The seeded faults: what is done to the tree, and the check that has to notice

def first(ident):
    return rf"(\\clause\{{{ident}\}})"


FAULTS = [
    ("identifier taken away", check_sentences, "text", first("INV-D-9") + " ", ""),
    ("two identifiers in a sentence", check_sentences, "text", first("INV-D-9"),
     r"\1 \\clause{INV-D-10}"),
    ("normative sentence added behind another", check_sentences, "text",
     r"(returned in any order\.|DEVICE_NEEDS_RESET\.)", r"\1 The device MUST log this."),
    ("key word taken away", check_sentences, "text",
     r"(INV-R-3\} The driver) MUST ignore", r"\1 ignores"),
    ("identifier in mid-sentence", check_sentences, "text",
     first("INV-R-3") + " The driver", r"The driver \1"),
    ("key word in a section that is not normative", check_keywords, "text",
     r"They\s+are all alike", "They MUST be all alike"),
    ("SHALL", check_keywords, "text", r"(INV-D-10\} The device) MUST", r"\1 SHALL"),
    ("MAY NOT", check_keywords, "text", r"(INV-R-5\} The driver) MUST NOT", r"\1 MAY NOT"),
    ("identifier used twice", check_unique, "text", r"\\clause\{INV-D-10\}",
     r"\\clause{INV-D-9}"),
    ("device clause in a driver section", check_unique, "text", r"\\clause\{INV-R-3\}",
     r"\\clause{INV-D-3}"),
    ("identifier misspelt", check_unique, "text", r"\\clause\{INV-R-3\}",
     r"\\clause{INV-R3}"),
    ("clause without a line in clauses.txt", check_registry, "registry",
     r"(?m)^INV-D-51\t.*\n", ""),
    ("clause renumbered", check_registry, "text", r"\\clause\{INV-D-51\}",
     r"\\clause{INV-D-52}"),
    ("clause deleted without a trace", check_registry, "both",
     r"(?m)(\\clause\{INV-D-12\}|^INV-D-12\t)(?:.+\n)+?(?=\n|INV)", ""),
    ("line in clauses.txt twice", check_registry, "registry",
     r"(?m)^(INV-D-7\t.*\n)", r"\1\1"),
    ("clause in the text that is retired", check_registry, "registry",
     r"(?m)^(INV-D-7\t)", r"\1retired: "),
    ("constant with another value in a listing", check_constants, "text",
     r"(INV_S_RANGE +)2", r"\g<1>3"),
    ("constant with another value in prose", check_constants, "text",
     r"(F_STAGE1) \(16\)", r"\1 (15)"),
    ("constant changed in the header", check_constants, "header",
     r"(VIRTIO_IOMMU_T_INVALIDATE\s+)0x22", r"\g<1>0x23"),
    ("constant added to the header", check_constants, "header",
     r"(#define VIRTIO_IOMMU_INV_S_RANGE.*\n)", r"\1#define VIRTIO_IOMMU_INV_S_PASID 3\n"),
    ("status misspelt", check_constants, "text", r"VIRTIO_IOMMU_S_DEVERR",
     "VIRTIO_IOMMU_S_DEVERROR"),
    ("member of a listing with another width", check_structs, "text",
     r"le16 flags;", "le32 flags;"),
    ("members of the header in another order", check_structs, "header",
     r"(\t__le64\t+start;\n)(\t__le64\t+last;\n)", r"\2\1"),
    ("array of the header with another length", check_structs, "header",
     r"reserved\[3\]", "reserved[7]"),
    ("structure added to the header", check_structs, "header",
     r"(?m)^(#endif)", "struct virtio_iommu_req_x {\n\t__u8 type;\n};\n\\1"),
    ("structure in a listing with another type inside", check_structs, "text",
     r"struct virtio_iommu_req_tail tail;", "struct virtio_iommu_req_head tail;"),
    ("union of a listing dissolved", check_structs, "text", r"(?m)^  union \{\n((?:.*\n)*?)  \};\n",
     r"\1"),
    ("name of a field misspelt", check_fields, "text", r"\\field\{leaf_shift\}",
     r"\\field{leafshift}"),
    ("length of a request", check_fields, "text", r"4 \+ 32 \*", "4 + 24 *"),
    ("length of a request in the table of lengths", check_fields, "text", r"& 76 & 4", "& 80 & 4"),
    ("length of a request in a clause", check_fields, "text", r"not 20 bytes", "not 24 bytes"),
    ("length of a request not given", check_fields, "text", r"(?m)^struct .* & 20 & 4 .*\n", ""),
    ("status in the table differs from its clause", check_table, "text",
     r"VIRTIO_IOMMU_S_RANGE & INV-D-24", "VIRTIO_IOMMU_S_INVAL & INV-D-24"),
    ("reference to nowhere", check_references, "text", r"\\ref\{sec:Device Types",
     r"\\ref{sec:Device Type"),
    ("text names a clause that does not exist", check_references, "text",
     r"as INV-R-27 permits", "as INV-R-99 permits"),
    ("macro that pandoc would drop", check_latex, "text", r"\\emph\{",
     r"\\textsc{"),
    ("environment not closed", check_latex, "text", r"\\end\{itemize\}", ""),
    ("brace not closed", check_latex, "text", r"\\field\{done\}", r"\\field{done"),
    ("macro that pandoc would drop, in the comparison", check_latex, "aside", r"\\url\{",
     r"\\path{"),
    ("key word in the comparison", check_aside, "aside", r"\bhas to\b", "MUST"),
    ("comparison names a clause that does not exist", check_aside, "aside", r"\bINV-D-34\b",
     "INV-D-99"),
    ("comparison names a source that is not listed", check_aside, "aside", r"\bS3\b(?!\])", "S99"),
    ("source that nothing refers to", check_aside, "aside", r"(\\item\[)S1\]", r"\1S99]"),
    ("source without an address", check_aside, "aside", r"\\url\{[^}]*\}", ""),
    ("test names a clause that does not exist", check_tree, "mentions",
     ("INV-D-999", "tools/testing/x.c", 1), None),
]


def untested_wrong(clean):
    """Complaints about untested(): with no test, one test, and files that are no tests."""
    live = clean.live()
    places = {"tools/testing/x.c": 1, "qemu/tests/x.c": 1, "tools/testing/faults/x.patch": 0,
              "tools/lab/x": 0, "drivers/x.c": 0}
    for path, less in places.items():
        tree = copy.copy(clean)
        tree.mentions = [("INV-D-2", path, 1)]
        text = list(untested(tree))
        if text[0] != f"no test yet: {len(live) - less} of {len(live)} clauses":
            yield f"named in {path}: {text[0]}"
        if (text[1].startswith("  INV-D: 1, 3 to ")) != bool(less):
            yield f"named in {path}: {text[1]}"


def selftest():
    clean = Tree()
    results = [("spec selftest: the tree as it is passes",
                [line for bad in failures(clean).values() for line in bad])]
    for name, check, where, pattern, repl in FAULTS:
        tree, problem = copy.copy(clean), []
        if where == "mentions":
            tree.mentions = clean.mentions + [pattern]
        else:
            for part in ("text", "registry") if where == "both" else (where,):
                new, count = re.subn(pattern, repl, getattr(tree, part), count=1)
                if not count:
                    problem = ["the fault could not be seeded"]
                setattr(tree, part, new)
        if not problem and not list(check(tree)):
            problem = [f"{check.__name__} did not notice"]
        results.append((f"spec selftest: {name}", problem))
    results.append(("spec selftest: what has no test yet is counted", list(untested_wrong(clean))))
    unseeded = [c.__name__ for c in CHECKS if c not in {f[1] for f in FAULTS}]
    results.append(("spec selftest: each check has a seeded fault", unseeded))
    return report(results)


def main():
    parser = argparse.ArgumentParser(description="Check the specification.")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--clauses", action="store_true")
    group.add_argument("--selftest", action="store_true")
    group.add_argument("--html", metavar="FILE")
    args = parser.parse_args()
    if args.clauses:
        return clauses()
    if args.selftest:
        return selftest()
    if args.html:
        return html(args.html)
    return lint()


if __name__ == "__main__":
    sys.exit(main())
