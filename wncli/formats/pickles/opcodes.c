/* The opcodes that a torch file's pickle is nearly all made of, thirty-odd of them for each tensor.
 *
 * The reader and the writer do all of this as well, where this module was not built. Whatever is not
 * usual is left to them, with nothing changed: other opcodes and nodes, and all that is to be refused.
 */

#include "read_opcodes.h"
#include "write_opcodes.h"

/* Opcodes that are carried out before Python may look for a signal. */
#define MOST_OPCODES (1 << 18)

static PyObject *py_carry_out(PyObject *Py_UNUSED(module), PyObject *args)
{
    machine m;
    PyObject *data;
    if (!PyArg_ParseTuple(args, "SnO!O!O!O!O!OO", &data, &m.place, &PyList_Type, &m.stack,
                          &PyList_Type, &m.marks, &PyList_Type, &m.memo, &PyList_Type,
                          &m.persistent_ids, &PyList_Type, &m.calls, &m.persistent_id, &m.call))
        return NULL;
    m.data = (const unsigned char *)PyBytes_AS_STRING(data);
    m.size = PyBytes_GET_SIZE(data);
    if (m.place < 0 || m.place > m.size) {
        PyErr_SetString(PyExc_ValueError, "the place is none in the data");
        return NULL;
    }
    m.reduce = PyUnicode_InternFromString("REDUCE");
    if (!m.reduce)
        return NULL;
    Py_INCREF(m.stack);
    outcome last = DONE;
    for (int count = 0; count < MOST_OPCODES && last == DONE; count++)
        last = step(&m);
    Py_DECREF(m.reduce);
    PyObject *found = last == FAILED ? NULL : Py_BuildValue("nO", m.place, m.stack);
    Py_DECREF(m.stack);
    return found;
}

static PyObject *py_write(PyObject *Py_UNUSED(module), PyObject *args)
{
    writer w = {0};
    PyObject *work;
    if (!PyArg_ParseTuple(args, "O!O!O!O!OOOO", &PyList_Type, &work, &PyDict_Type, &w.memo,
                          &PyList_Type, &w.kept_alive, &PyDict_Type, &w.begun, &w.persistent,
                          &w.global, &w.call, &w.persistent_id))
        return NULL;
    outcome last;
    do
        last = write_last(&w, work);
    while (last == DONE);
    PyObject *found = last == FAILED ? NULL : PyBytes_FromStringAndSize(w.bytes, (Py_ssize_t)w.size);
    PyMem_Free(w.bytes);
    return found;
}

static PyMethodDef methods[] = {
    {"carry_out", py_carry_out, METH_VARARGS,
     "carry_out(data, place, stack, marks, memo, persistent_ids, calls, PersistentId, Call)\n\n"
     "Carry out opcodes from the place on; where the next one is, and the stack then."},
    {"write", py_write, METH_VARARGS,
     "write(work, memo, kept_alive, begun, persistent, Global, Call, PersistentId)\n\n"
     "Take usual nodes off the end of what is to be written; their opcodes."},
    {0},
};

static PyModuleDef_Slot slots[] = {{0}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "opcodes",
    .m_doc = "The opcodes that a torch file's pickle is nearly all made of.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_opcodes(void)
{
    return PyModuleDef_Init(&definition);
}
