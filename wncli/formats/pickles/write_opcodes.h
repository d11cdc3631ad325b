/* Writing: nodes that are usual all through, as CPython's pickler would. */

#pragma once

#include "opcodes.h"

/* Nodes inside one another: a tensor and all that it is made of. */
#define DEEPEST 12

typedef struct {
    char *bytes;
    size_t size, room;
    PyObject *memo, *kept_alive, *begun; /* those of the writer in Python */
    PyObject *persistent, *global, *call, *persistent_id;
} writer;

static outcome write_bytes(writer *w, const void *bytes, size_t count)
{
    if (w->room - w->size < count) {
        const size_t room = 2 * (w->size + count) + 4096;
        char *moved = PyMem_Realloc(w->bytes, room);
        if (!moved) {
            PyErr_NoMemory();
            return FAILED;
        }
        w->bytes = moved;
        w->room = room;
    }
    memcpy(w->bytes + w->size, bytes, count);
    w->size += count;
    return DONE;
}

/* An opcode, and a number of so many bytes. */
static outcome write_opcode(writer *w, int opcode, uint32_t number, int count)
{
    char bytes[5] = {(char)opcode};
    for (int byte = 0; byte < count; byte++)
        bytes[1 + byte] = (char)(number >> 8 * byte);
    return write_bytes(w, bytes, 1 + (size_t)count);
}

/* What the memo knows a node by; NULL after an error. */
static PyObject *id_of(PyObject *node) { return PyLong_FromVoidPtr(node); }

/* Fetch a node that has been written; LEFT where it has not been. */
static outcome write_known(writer *w, PyObject *node)
{
    PyObject *id = id_of(node);
    if (!id)
        return FAILED;
    PyObject *known = PyDict_GetItemWithError(w->memo, id);
    Py_DECREF(id);
    if (!known)
        return PyErr_Occurred() ? FAILED : LEFT;
    const unsigned long place = PyLong_AsUnsignedLong(known);
    if (place == (unsigned long)-1 && PyErr_Occurred())
        return FAILED;
    return place < 256 ? write_opcode(w, BINGET, (uint32_t)place, 1)
                       : write_opcode(w, LONG_BINGET, (uint32_t)place, 4);
}

/* Have a node remembered that has been written. */
static outcome write_put(writer *w, PyObject *node)
{
    const Py_ssize_t place = PyDict_GET_SIZE(w->memo);
    PyObject *id = id_of(node), *number = PyLong_FromSsize_t(place);
    const int failed = !id || !number || PyList_Append(w->kept_alive, node) ||
                       PyDict_SetItem(w->memo, id, number);
    Py_XDECREF(id);
    Py_XDECREF(number);
    if (failed)
        return FAILED;
    return place < 256 ? write_opcode(w, BINPUT, (uint32_t)place, 1)
                       : write_opcode(w, LONG_BINPUT, (uint32_t)place, 4);
}

/* Make a node of what has been written before, and have it remembered. */
static outcome write_made(writer *w, PyObject *node, int opcode)
{
    return write_opcode(w, opcode, 0, 0) == DONE ? write_put(w, node) : FAILED;
}

static outcome write_int(writer *w, PyObject *node)
{
    int beyond;
    const long value = PyLong_AsLongAndOverflow(node, &beyond);
    if (value == -1 && PyErr_Occurred())
        return FAILED;
    if (beyond || value < INT32_MIN || value > INT32_MAX)
        return LEFT;
    if (0 <= value && value < 1 << 8)
        return write_opcode(w, BININT1, (uint32_t)value, 1);
    if (0 <= value && value < 1 << 16)
        return write_opcode(w, BININT2, (uint32_t)value, 2);
    return write_opcode(w, BININT, (uint32_t)value, 4);
}

/* The UTF-8 of a text, or NULL without an error where it has none. */
static const char *utf8(PyObject *text, Py_ssize_t *count)
{
    if (!PyUnicode_CheckExact(text))
        return NULL;
    const char *found = PyUnicode_AsUTF8AndSize(text, count);
    if (!found && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
        PyErr_Clear();
    return found;
}

static outcome write_text(writer *w, PyObject *node)
{
    Py_ssize_t count;
    const char *found = utf8(node, &count);
    if (!found)
        return PyErr_Occurred() ? FAILED : LEFT;
    if ((uint64_t)count > UINT32_MAX)
        return LEFT;
    const bool is_written = write_opcode(w, BINUNICODE, (uint32_t)count, 4) == DONE &&
                            write_bytes(w, found, (size_t)count) == DONE;
    return is_written ? write_put(w, node) : FAILED;
}

static outcome write_global(writer *w, PyObject *node)
{
    outcome found = write_opcode(w, GLOBAL, 0, 0);
    for (int part = 0; part < 2 && found == DONE; part++) {
        PyObject *text = PyObject_GetAttrString(node, part ? "name" : "module");
        Py_ssize_t count;
        const char *bytes = text ? utf8(text, &count) : NULL;
        found = bytes ? write_bytes(w, bytes, (size_t)count) : PyErr_Occurred() ? FAILED : LEFT;
        if (found == DONE)
            found = write_bytes(w, "\n", 1);
        Py_XDECREF(text);
    }
    return found == DONE ? write_put(w, node) : found;
}

static outcome write_node(writer *w, PyObject *node, int deeper);

static outcome write_tuple(writer *w, PyObject *node, int deeper)
{
    const Py_ssize_t count = PyTuple_GET_SIZE(node);
    if (!count)
        return write_opcode(w, EMPTY_TUPLE, 0, 0);
    const bool is_short = count <= 3;
    outcome found = is_short ? DONE : write_opcode(w, MARK, 0, 0);
    for (Py_ssize_t place = 0; place < count && found == DONE; place++)
        found = write_node(w, PyTuple_GET_ITEM(node, place), deeper);
    return found == DONE ? write_made(w, node, is_short ? TUPLE1 - 1 + (int)count : TUPLE) : found;
}

/* LEFT where Python has begun to write a call, else DONE. */
static outcome is_begun(const writer *w, PyObject *node)
{
    PyObject *id = id_of(node);
    const int found = id ? PyDict_Contains(w->begun, id) : -1;
    Py_XDECREF(id);
    return found < 0 ? FAILED : found ? LEFT : DONE;
}

/* A call is usual if it has nothing but arguments, does not stand inside itself, and nothing happens
 * to its result. */
static outcome write_call(writer *w, PyObject *node, int deeper)
{
    static const char *const names[] = {"opcode", "keywords", "effects", "function", "args"};
    PyObject *parts[5] = {0};
    outcome found = is_begun(w, node);
    for (int part = 0; part < 5 && found == DONE; part++) {
        parts[part] = PyObject_GetAttrString(node, names[part]);
        found = parts[part] ? DONE : FAILED;
    }
    if (found == DONE &&
        !(PyUnicode_Check(parts[0]) && !PyUnicode_CompareWithASCIIString(parts[0], "REDUCE") &&
          parts[1] == Py_None && PyList_CheckExact(parts[2]) && !PyList_GET_SIZE(parts[2])))
        found = LEFT;
    for (int part = 3; part < 5 && found == DONE; part++)
        found = write_node(w, parts[part], deeper);
    for (int part = 0; part < 5; part++)
        Py_XDECREF(parts[part]);
    return found == DONE ? write_made(w, node, REDUCE) : found;
}

static outcome write_persistent_id(writer *w, PyObject *node, int deeper)
{
    PyObject *pid = PyObject_CallOneArg(w->persistent, node);
    if (!pid)
        return FAILED;
    outcome found = write_node(w, pid, deeper);
    if (found == DONE && !Py_IS_TYPE(pid, (PyTypeObject *)w->global))
        found = write_opcode(w, BINPERSID, 0, 0);
    Py_DECREF(pid);
    return found;
}

/* Write a node, unless it is unusual in some way, or there are too many inside one another. */
static outcome write_node(writer *w, PyObject *node, int deeper)
{
    PyObject *type = (PyObject *)Py_TYPE(node);
    if (PyLong_CheckExact(node))
        return write_int(w, node);
    if (node == Py_None)
        return write_opcode(w, NONE, 0, 0);
    if (PyBool_Check(node))
        return write_opcode(w, node == Py_True ? NEWTRUE : NEWFALSE, 0, 0);
    const outcome known = write_known(w, node);
    if (known != LEFT || !deeper)
        return known;
    if (PyUnicode_CheckExact(node))
        return write_text(w, node);
    if (PyTuple_CheckExact(node))
        return write_tuple(w, node, deeper - 1);
    if (type == w->global)
        return write_global(w, node);
    if (type == w->call)
        return write_call(w, node, deeper - 1);
    if (type == w->persistent_id)
        return write_persistent_id(w, node, deeper - 1);
    return LEFT;
}

/* Forget what has been written from a place on. */
static outcome take_back(writer *w, size_t size, Py_ssize_t kept)
{
    w->size = size;
    for (Py_ssize_t last = PyList_GET_SIZE(w->kept_alive); last > kept; last--) {
        PyObject *id = id_of(PyList_GET_ITEM(w->kept_alive, last - 1));
        const int failed = !id || PyDict_DelItem(w->memo, id);
        Py_XDECREF(id);
        if (failed)
            return FAILED;
    }
    return PyList_SetSlice(w->kept_alive, kept, PyList_GET_SIZE(w->kept_alive), NULL) ? FAILED : LEFT;
}

/* Write the last node of what is to be written, and take it off. */
static outcome write_last(writer *w, PyObject *work)
{
    const Py_ssize_t last = PyList_GET_SIZE(work) - 1;
    const size_t size = w->size;
    const Py_ssize_t kept = PyList_GET_SIZE(w->kept_alive);
    if (last < 0)
        return LEFT;
    const outcome found = write_node(w, PyList_GET_ITEM(work, last), DEEPEST);
    if (found == LEFT)
        return take_back(w, size, kept);
    return found == DONE && PyList_SetSlice(work, last, last + 1, NULL) ? FAILED : found;
}
