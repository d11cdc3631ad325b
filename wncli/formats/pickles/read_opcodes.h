/* Reading: an opcode at a time, into the nodes of Python. */

#pragma once

#include "opcodes.h"

typedef struct {
    const unsigned char *data;
    Py_ssize_t size, place;
    /* Lists, of which the machine in Python has the same ones. */
    PyObject *stack, *marks, *memo, *persistent_ids, *calls;
    PyObject *persistent_id, *call, *reduce;
} machine;

static uint32_t number_at(const unsigned char *at, int count)
{
    uint32_t found = 0;
    for (int byte = 0; byte < count; byte++)
        found |= (uint32_t)at[byte] << 8 * byte;
    return found;
}

/* Put a new reference on a list, which has it then; `node` may be NULL, after an error. */
static outcome push(PyObject *list, PyObject *node)
{
    if (!node)
        return FAILED;
    const int failed = PyList_Append(list, node);
    Py_DECREF(node);
    return failed ? FAILED : DONE;
}

/* Exchange the last `count` of the stack for a new reference. */
static outcome exchange(PyObject *stack, Py_ssize_t count, PyObject *node)
{
    if (!node)
        return FAILED;
    const Py_ssize_t size = PyList_GET_SIZE(stack);
    if (PyList_SetSlice(stack, size - count, size, NULL)) {
        Py_DECREF(node);
        return FAILED;
    }
    return push(stack, node);
}

/* The same with a node that goes on a list as well. */
static outcome exchange_listed(PyObject *stack, Py_ssize_t count, PyObject *list, PyObject *node)
{
    if (node && PyList_Append(list, node))
        Py_CLEAR(node);
    return exchange(stack, count, node);
}

static outcome remember(const machine *m, uint32_t place)
{
    const Py_ssize_t size = PyList_GET_SIZE(m->stack);
    if (!size || place != PyList_GET_SIZE(m->memo))
        return LEFT;
    return PyList_Append(m->memo, PyList_GET_ITEM(m->stack, size - 1)) ? FAILED : DONE;
}

static outcome recall(const machine *m, uint32_t place)
{
    if (place >= PyList_GET_SIZE(m->memo))
        return LEFT;
    return push(m->stack, Py_NewRef(PyList_GET_ITEM(m->memo, place)));
}

static outcome text(const machine *m, const unsigned char *at, Py_ssize_t count)
{
    PyObject *found = PyUnicode_DecodeUTF8((const char *)at, count, "surrogatepass");
    if (!found && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        return LEFT;
    }
    return push(m->stack, found);
}

static outcome mark(machine *m)
{
    PyObject *above = PyList_New(0);
    if (!above || PyList_Append(m->marks, m->stack)) {
        Py_XDECREF(above);
        return FAILED;
    }
    Py_SETREF(m->stack, above);
    return DONE;
}

static outcome tuple_since_mark(machine *m)
{
    const Py_ssize_t size = PyList_GET_SIZE(m->marks);
    if (!size)
        return LEFT;
    PyObject *found = PyList_AsTuple(m->stack);
    if (!found)
        return FAILED;
    PyObject *below = Py_NewRef(PyList_GET_ITEM(m->marks, size - 1));
    if (PyList_SetSlice(m->marks, size - 1, size, NULL)) {
        Py_DECREF(below);
        Py_DECREF(found);
        return FAILED;
    }
    Py_SETREF(m->stack, below);
    return push(m->stack, found);
}

static outcome tuple_of(const machine *m, Py_ssize_t count)
{
    const Py_ssize_t size = PyList_GET_SIZE(m->stack);
    if (size < count)
        return LEFT;
    PyObject *items = PyList_GetSlice(m->stack, size - count, size);
    PyObject *found = items ? PyList_AsTuple(items) : NULL;
    Py_XDECREF(items);
    return exchange(m->stack, count, found);
}

static outcome persistent(const machine *m)
{
    const Py_ssize_t size = PyList_GET_SIZE(m->stack);
    if (!size)
        return LEFT;
    PyObject *node = PyObject_CallOneArg(m->persistent_id, PyList_GET_ITEM(m->stack, size - 1));
    return exchange_listed(m->stack, 1, m->persistent_ids, node);
}

/* One argument alone may be the items of an OrderedDict from Python 2. */
static outcome call(const machine *m)
{
    const Py_ssize_t size = PyList_GET_SIZE(m->stack);
    if (size < 2)
        return LEFT;
    PyObject *function = PyList_GET_ITEM(m->stack, size - 2);
    PyObject *args = PyList_GET_ITEM(m->stack, size - 1);
    if (!PyTuple_CheckExact(args) || PyTuple_GET_SIZE(args) == 1)
        return LEFT;
    PyObject *node = PyObject_CallFunctionObjArgs(m->call, m->reduce, function, args, NULL);
    return exchange_listed(m->stack, 2, m->calls, node);
}

/* Carry out the opcode at the place, and go behind it. */
static outcome step(machine *m)
{
    const unsigned char *at = m->data + m->place + 1;
    const Py_ssize_t left = m->size - m->place - 1;
    Py_ssize_t taken = 0; /* bytes behind the opcode */
    outcome found = LEFT;
    if (left < 0)
        return LEFT;
    switch (m->data[m->place]) {
    case BINPUT:
        found = left >= (taken = 1) ? remember(m, at[0]) : LEFT;
        break;
    case LONG_BINPUT:
        found = left >= (taken = 4) ? remember(m, number_at(at, 4)) : LEFT;
        break;
    case BINGET:
        found = left >= (taken = 1) ? recall(m, at[0]) : LEFT;
        break;
    case LONG_BINGET:
        found = left >= (taken = 4) ? recall(m, number_at(at, 4)) : LEFT;
        break;
    case BININT1:
        found = left >= (taken = 1) ? push(m->stack, PyLong_FromLong(at[0])) : LEFT;
        break;
    case BININT2:
        found = left >= (taken = 2) ? push(m->stack, PyLong_FromLong(number_at(at, 2))) : LEFT;
        break;
    case BININT:
        if (left >= (taken = 4))
            found = push(m->stack, PyLong_FromLong((int32_t)number_at(at, 4)));
        break;
    case BINUNICODE:
        if (left >= 4 && number_at(at, 4) <= left - 4) {
            taken = 4 + (Py_ssize_t)number_at(at, 4);
            found = text(m, at + 4, taken - 4);
        }
        break;
    case MARK:
        found = mark(m);
        break;
    case EMPTY_TUPLE:
        found = push(m->stack, PyTuple_New(0));
        break;
    case TUPLE:
        found = tuple_since_mark(m);
        break;
    case TUPLE1:
    case TUPLE2:
    case TUPLE3:
        found = tuple_of(m, m->data[m->place] - TUPLE1 + 1);
        break;
    case NONE:
        found = push(m->stack, Py_NewRef(Py_None));
        break;
    case NEWTRUE:
        found = push(m->stack, Py_NewRef(Py_True));
        break;
    case NEWFALSE:
        found = push(m->stack, Py_NewRef(Py_False));
        break;
    case BINPERSID:
        found = persistent(m);
        break;
    case REDUCE:
        found = call(m);
        break;
    }
    if (found == DONE)
        m->place += 1 + taken;
    return found;
}
